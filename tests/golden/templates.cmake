restkv_golden(golden_templates SOURCES template_test.cpp LIBS restkv_chat nlohmann_json::nlohmann_json)
