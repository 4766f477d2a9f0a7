restkv_golden(golden_gguf SOURCES gguf_test.cpp LIBS restkv_model restkv_base)
