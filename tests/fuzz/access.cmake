restkv_fuzz(key_file_fuzz SOURCES key_file_fuzz.cpp LIBS restkv_access)
