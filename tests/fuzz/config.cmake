restkv_fuzz(yaml_fuzz SOURCES yaml_fuzz.cpp LIBS restkv_config)
