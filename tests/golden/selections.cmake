restkv_golden(golden_selections SOURCES selections_test.cpp LIBS restkv_eviction restkv_cpu restkv_model)
if(NOT RESTKV_SANITIZE)  # a fiber for each GPU thread under a sanitizer takes too long; the op table's emulated cases run there
  restkv_golden(emulated_golden_selections SOURCES selections_test.cpp LIBS restkv_eviction restkv_emulated restkv_host_copies restkv_cuda
    restkv_cpu restkv_model)
  target_compile_definitions(emulated_golden_selections PRIVATE RESTKV_EMULATED=1)
endif()
