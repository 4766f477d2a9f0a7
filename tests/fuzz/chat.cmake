restkv_fuzz(template_fuzz SOURCES template_fuzz.cpp LIBS restkv_chat nlohmann_json::nlohmann_json)
