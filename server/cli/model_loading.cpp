// A request's client side: the engine's wake sets a condition variable, this thread takes the records.
#include "server/cli/model_loading.h"

#include "server/cli/model_path.h"
#include "server/cli/terminal.h"
#include "server/cli/wake_signal.h"

namespace restkv {

Result<std::shared_ptr<const Model>> load_model_of(const Settings& settings) {
  const Result<std::string> path = resolve_model(settings.model);
  if (!path.ok()) return path.status();
  ProgressBar bar("loading weights");
  return load_model(
      *path, [&](int64_t done, int64_t total) { bar.update(done, total); }, settings.model.rope);
}

Status check_tokenizer_fits(const Tokenizer& tokenizer, const ModelConfig& config) {
  // Embeddings are padded to round sizes, and a few tokens added later may have no row; more is a mistake.
  constexpr int64_t kMaxAdded = 256, kMinShare = 8;
  const int64_t tokens = tokenizer.vocab_size(), rows = config.vocab_size;
  if (tokens <= rows + kMaxAdded && tokens >= rows - rows / kMinShare) return {};
  return invalid_argument("the tokenizer has " + std::to_string(tokens) +
                          " tokens and the model's embedding " + std::to_string(rows) +
                          " rows: it is the tokenizer of another model");
}

Result<LoadedModel> load_model_and_tokenizer(const Settings& settings) {
  Result<std::shared_ptr<const Model>> model = load_model_of(settings);
  if (!model.ok()) return model.status();
  const Model& loaded = **model;
  Result<std::shared_ptr<const Tokenizer>> tokenizer =
      loaded.gguf ? load_gguf_tokenizer(*loaded.gguf) : load_tokenizer(loaded.path);
  if (!tokenizer.ok()) return tokenizer.status();
  if (Status status = check_tokenizer_fits(**tokenizer, loaded.config); !status.ok()) return status;
  Result<std::shared_ptr<const ChatFormat>> chat_format =
      load_chat_format(loaded.path, loaded.gguf.get(), **tokenizer, settings.model.chat_template);
  if (!chat_format.ok()) return chat_format.status();
  return LoadedModel{*std::move(model), *std::move(tokenizer), *std::move(chat_format)};
}

Result<TokenRecord> run_request(Engine& engine, Request request,
                                const std::function<void(const TokenRecord&)>& on_token,
                                const std::function<bool()>& is_stopped) {
  const auto signal = std::make_shared<WakeSignal>();
  request.arrival = Clock::now();
  const auto handle = std::make_shared<RequestHandle>(std::move(request), [signal] { signal->notify(); });
  if (Status status = engine.submit(handle); !status.ok()) return status;

  std::vector<TokenRecord> records;
  for (;;) {
    signal->wait();
    if (is_stopped()) handle->cancel();
    handle->stream.take(records);
    for (TokenRecord& record : records) {
      if (record.kind == TokenRecord::Kind::kFinish) {
        if (record.finish == FinishReason::kError) return record.error;
        return std::move(record);
      }
      on_token(record);
    }
  }
}

}  // namespace restkv
