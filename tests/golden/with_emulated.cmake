# The same cases on the emulated CUDA device: every kernel of kernels/cuda, run by the host.
foreach(name models selections)
  restkv_golden(emulated_golden_${name} SOURCES ${name}_test.cpp LIBS restkv_engine restkv_emulated)
  target_compile_definitions(emulated_golden_${name} PRIVATE RESTKV_EMULATED=1)
  target_compile_definitions(golden_${name} PRIVATE RESTKV_EMULATED=0)
  set_tests_properties(emulated_golden_${name} PROPERTIES TIMEOUT 1200)
endforeach()
