// POST /completion in llama.cpp's shape: its fields, defaults and answers. Fields become a CompletionRequest like any other.
#pragma once

#include <span>
#include <string>

#include "engine/request.h"
#include "server/openai/completion_request.h"
#include "server/openai/output_assembler.h"

namespace restkv {

std::span<const RequestField<CompletionRequest>> llama_fields();
// llama.cpp's own defaults, under the request's fields.
SamplingParams llama_sampling();

// What an answer says beside its text.
struct LlamaAnswer {
  const Tokenizer* tokenizer = nullptr;
  const OutputOptions* options = nullptr;
  const Request* request = nullptr;
  std::string_view model = {};  // served name
  bool has_new_line = false;    // the whole text, of which a stream's last delta is a part
};

// {"index", "content", "tokens", "stop": false, ...}
void append_llama_chunk(std::string& out, const LlamaAnswer& answer, const OutputDelta& delta,
                        const OutputUsage& usage);
void append_llama_progress(std::string& out, const PromptProgress& progress);
// The same with "stop": true and everything that is known at the end; text and tokens are empty if they were streamed.
void append_llama_final(std::string& out, const LlamaAnswer& answer, const OutputDelta& delta,
                        bool is_streamed, const OutputUsage& usage);

}  // namespace restkv
