restkv_fuzz(allocation_fuzz SOURCES allocation_fuzz.cpp LIBS restkv_eviction)
