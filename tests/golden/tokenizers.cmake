restkv_golden(golden_tokenizers SOURCES tokenizer_test.cpp LIBS restkv_text)
