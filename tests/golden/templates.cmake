# The template engine belongs to the server; a build of the core alone has none.
if(TARGET restkv_chat)
  restkv_golden(golden_templates SOURCES template_test.cpp LIBS restkv_chat nlohmann_json::nlohmann_json)
endif()
