// A GGUF model in several files, as llama-gguf-split writes them: NAME-00001-of-00003.gguf and so on. The first holds the
// metadata, each some of the tensors; every one says `split.count` and its own `split.no`, counted from 0.
#pragma once

#include <string>

#include "engine/model/gguf.h"

namespace restkv {

// The file at `path`, with the tensors of its other parts where it is the first of several. A part that is missing,
// of another model or named apart from the others is an error that says which.
Result<GgufFile> open_gguf_parts(const std::string& path);

// What people call the model in this file: the file's name without folder, ".gguf" and the tail of a first part.
std::string gguf_model_name(const std::string& path);

}  // namespace restkv
