restkv_fuzz(json_request_fuzz SOURCES json_request_fuzz.cpp ${CMAKE_SOURCE_DIR}/tests/server/byte_tokenizer.cpp
  LIBS restkv_openai restkv_scheduler nlohmann_json::nlohmann_json)
if(TARGET restkv_wire)
  restkv_fuzz(http_request_fuzz SOURCES http_request_fuzz.cpp LIBS restkv_wire)
endif()
