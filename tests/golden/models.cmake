restkv_golden(golden_models SOURCES models_test.cpp LIBS restkv_engine)
# The same cases with attention on the card's kernels, run by the emulator.
restkv_golden(emulated_golden_models SOURCES models_test.cpp LIBS restkv_engine restkv_emulated)
target_compile_definitions(emulated_golden_models PRIVATE RESTKV_EMULATED=1)
