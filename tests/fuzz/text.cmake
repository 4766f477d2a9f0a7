restkv_fuzz(tokenizer_fuzz SOURCES tokenizer_fuzz.cpp LIBS restkv_text)
restkv_fuzz(vocabulary_fuzz SOURCES vocabulary_fuzz.cpp LIBS restkv_text)
