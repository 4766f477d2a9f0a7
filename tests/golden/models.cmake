restkv_golden(golden_models SOURCES models_test.cpp LIBS restkv_engine)
