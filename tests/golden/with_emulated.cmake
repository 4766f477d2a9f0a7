# The models on the emulated CUDA device: the whole backend, every kernel run by the host.
target_compile_definitions(golden_models PRIVATE RESTKV_EMULATED=0)
if(NOT RESTKV_SANITIZE)
  restkv_golden(emulated_golden_models SOURCES models_test.cpp LIBS restkv_engine restkv_emulated)
  target_compile_definitions(emulated_golden_models PRIVATE RESTKV_EMULATED=1)
  set_tests_properties(emulated_golden_models PROPERTIES TIMEOUT 1200)
endif()
