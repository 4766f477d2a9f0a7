# Model files. Seeds are made at build time, in the folder that test.sh lets the corpus grow in.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
foreach(target gguf_fuzz json_fuzz model_config_fuzz safetensors_fuzz)
  restkv_fuzz(${target} SOURCES ${target}.cpp LIBS restkv_model)
  add_custom_command(TARGET ${target} POST_BUILD
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/model_seeds.py ${target} ${CMAKE_BINARY_DIR}/corpus/${target})
endforeach()
