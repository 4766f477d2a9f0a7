if(TARGET restkv_hub_names)
  restkv_fuzz(hub_listing_fuzz SOURCES hub_listing_fuzz.cpp LIBS restkv_hub_names)
endif()
