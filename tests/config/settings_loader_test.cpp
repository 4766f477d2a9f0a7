// Error texts with their places, precedence, variables, the shipped YAML files, and the documents made from
// the table.
#include "server/config/settings_loader.h"

#include <filesystem>
#include <fstream>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace restkv {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

Environment environment_of(std::map<std::string, std::string> values) {
  return [values = std::move(values)](const std::string& name) -> std::optional<std::string> {
    const auto found = values.find(name);
    if (found == values.end()) return std::nullopt;
    return found->second;
  };
}

LoadedSettings load(const std::string& yaml, const Environment& environment = environment_of({})) {
  LoadedSettings loaded;
  apply_yaml(yaml, "serve.yaml", environment, loaded);
  return loaded;
}

// A file that is gone after the test.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text) {
    path_ = testing::TempDir() + "restkv_config_" + std::to_string(getpid()) + ".yaml";
    std::ofstream(path_) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(SettingsLoader, ReadsAllSections) {
  const LoadedSettings loaded = load(
      "version: 1\n"
      "server:\n  host: ::1\n  port: 9000\n  drain-timeout: 5s\n  max_body_size: 1MiB\n"
      "engine: {threads: 2, memory_fraction: 0.25}\n"
      "cache:\n  dtype: f16\n"
      "model:\n  path: 'demo'\n  max_model_len: 2K\n"
      "logging:\n  level: debug\n  log_content: yes\n");
  EXPECT_THAT(loaded.errors, IsEmpty());
  EXPECT_TRUE(loaded.settings.logging.log_content);
  EXPECT_EQ(loaded.settings.server.host, "::1");
  EXPECT_EQ(loaded.settings.server.port, 9000);
  EXPECT_EQ(loaded.settings.server.drain_timeout, milliseconds(5000));
  EXPECT_EQ(loaded.settings.server.max_body_size, 1 << 20);
  EXPECT_EQ(loaded.settings.engine.threads, 2);
  EXPECT_EQ(loaded.settings.engine.memory_fraction, 0.25);
  EXPECT_EQ(loaded.settings.engine.cache_dtype, DType::kF16);
  EXPECT_EQ(loaded.settings.engine.max_model_len, 2048);
  EXPECT_EQ(loaded.settings.model.path, "demo");
  EXPECT_EQ(loaded.settings.logging.level, LogLevel::kDebug);
}

TEST(SettingsLoader, AllErrorsAtOnceWithPlaceAndNearestName) {
  const LoadedSettings loaded = load(
      "version: 1\n"
      "server:\n"
      "  host: 127.0.0.1\n"
      "  prot: 8000\n"
      "  port: 70000\n"
      "  drain_timeout: soon\n"
      "  threads: 4\n"
      "  insecure: maybe\n"
      "engine:\n"
      "  gpu_memory_utilization: 0.9\n"
      "  threads: [1, 2]\n"
      "  max_num_seqs:\n"
      "cache:\n"
      "  dtype: f61\n"
      "sever:\n"
      "  port: 1\n"
      "logging: debug\n");
  EXPECT_THAT(
      loaded.errors,
      ElementsAre(
          "serve.yaml:4:3: unknown key 'prot' in server (did you mean 'port'?)",
          "serve.yaml:5:9: server.port: 70000 is out of bounds (0 to 65535)",
          "serve.yaml:6:18: server.drain_timeout: 'soon' is not a duration (examples: 500ms, 30s, 10m, 1h)",
          "serve.yaml:7:3: unknown key 'threads' in server (it belongs to engine)",
          "serve.yaml:8:13: server.insecure: 'maybe' is neither true nor false",
          "serve.yaml:10:3: unknown key 'gpu_memory_utilization' in engine (did you mean "
          "'memory_fraction'?)",
          "serve.yaml:11:12: engine.threads: expected one value, found a list",
          "serve.yaml:12:3: engine.max_num_seqs: has no value; leave the key out for the default",
          "serve.yaml:14:10: cache.dtype: 'f61' is not one of f32, f16 (did you mean 'f16'?)",
          "serve.yaml:15:1: unknown section 'sever' (did you mean 'server'?)",
          "serve.yaml:17:10: logging: expected keys and values"));
}

TEST(SettingsLoader, RefusesDuplicatesAnchorsAndOtherVersions) {
  EXPECT_THAT(load("version: 1\nserver:\n  port: 1\n  port: 2\n").errors,
              ElementsAre("serve.yaml:4:3: duplicate key 'port' (first in line 3)"));
  EXPECT_THAT(load("version: 1\nserver:\n  max_headers: 10\n  max-headers: 20\n").errors,
              ElementsAre("serve.yaml:4:3: duplicate key 'max-headers' in server"));
  EXPECT_THAT(
      load("version: 1\nserver: &s\n  port: 1\n").errors,
      ElementsAre("serve.yaml:2:9: anchors (&name) are not allowed; write the value out where it is needed"));
  EXPECT_THAT(load("version: 2\n").errors,
              ElementsAre("serve.yaml:1:10: version: '2' is not known, this program reads version 1"));
  EXPECT_THAT(load("server:\n  port: 1\n").errors,
              ElementsAre("serve.yaml:1:1: the key 'version' is missing (add a first line 'version: 1')"));
  EXPECT_THAT(load("").errors,
              ElementsAre("serve.yaml:1:1: expected sections (server, engine, cache, prefix, model, metrics, "
                          "logging)"));
}

TEST(SettingsLoader, KeysBeforeAnErrorOfSyntaxAreStillChecked) {
  const LoadedSettings loaded = load("version: 1\nserver:\n  prot: 1\n  host: 'x\n");
  ASSERT_EQ(loaded.errors.size(), 2u);
  EXPECT_EQ(loaded.errors[0], "serve.yaml:3:3: unknown key 'prot' in server (did you mean 'port'?)");
  EXPECT_THAT(loaded.errors[1], testing::StartsWith("serve.yaml:"));
}

TEST(SettingsLoader, ErrorsShowNoControlCharacters) {
  const LoadedSettings loaded = load("version: 1\nserver:\n  \"po\\e[31m\\nrt\": 1\n");
  ASSERT_EQ(loaded.errors.size(), 1u);
  EXPECT_EQ(loaded.errors[0].find('\n'), std::string::npos);
  EXPECT_EQ(loaded.errors[0].find('\x1b'), std::string::npos);
}

TEST(SettingsLoader, ExpandsVariables) {
  const Environment environment = environment_of({{"PORT", "81"}, {"EVIL", "${PORT}"}});
  EXPECT_EQ(*expand_variables("a${PORT}b${NONE:-c}${NONE:-}$", environment), "a81bc$");
  EXPECT_EQ(*expand_variables("$${PORT}", environment), "${PORT}");
  EXPECT_EQ(*expand_variables("${EVIL}", environment), "${PORT}") << "once, not again";
  EXPECT_EQ(load("version: 1\nserver:\n  port: ${PORT:-8000}\n", environment).settings.server.port, 81);
  EXPECT_EQ(load("version: 1\nserver:\n  port: ${OTHER:-8000}\n", environment).settings.server.port, 8000);
  EXPECT_THAT(load("version: 1\nserver:\n  port: ${OTHER}\n", environment).errors,
              ElementsAre("serve.yaml:3:9: server.port: the environment variable 'OTHER' is not set (write "
                          "${OTHER:-default} to allow that)"));
  EXPECT_THAT(
      load("version: 1\nserver:\n  host: ${OTHER\n", environment).errors,
      ElementsAre("serve.yaml:3:9: server.host: '${' without a '}' (write '$${' for the characters)"));
}

TEST(SettingsLoader, FlagsOverEnvironmentOverFileOverDefaults) {
  const TemporaryFile file("version: 1\nserver:\n  port: 1\n  max_headers: 11\nengine:\n  threads: 1\n");
  const FlagValue config{find_flag("config"), "--config", file.path()};
  const FlagValue port{find_flag("port"), "--port", "3"};
  const Environment environment = environment_of({{"RESTKV_PORT", "2"}, {"RESTKV_THREADS", "2"}});
  const LoadedSettings loaded = load_settings(kServe, {config, port}, environment);
  EXPECT_THAT(loaded.errors, IsEmpty());
  EXPECT_EQ(loaded.settings.server.port, 3);
  EXPECT_EQ(loaded.settings.engine.threads, 2);
  EXPECT_EQ(loaded.settings.server.max_headers, 11);
  EXPECT_EQ(loaded.settings.server.host, "127.0.0.1");
  const auto source = [&](const char* flag) {
    return loaded.sources[find_flag(flag) - option_table().data()];
  };
  EXPECT_EQ(source("port"), SettingSource::kFlag);
  EXPECT_EQ(source("threads"), SettingSource::kEnvironment);
  EXPECT_EQ(source("max-headers"), SettingSource::kYaml);
  EXPECT_EQ(source("host"), SettingSource::kDefault);
}

TEST(SettingsLoader, VariablesOfAKubernetesServiceAreNoSettings) {
  const Environment links = environment_of({{"RESTKV_PORT", "tcp://10.96.0.7:8000"},
                                            {"RESTKV_PORT_8000_TCP", "tcp://10.96.0.7:8000"},
                                            {"RESTKV_SERVICE_HOST", "10.96.0.7"}});
  const LoadedSettings loaded = load_settings(kServe, {}, links);
  EXPECT_THAT(loaded.errors, IsEmpty());
  EXPECT_EQ(loaded.settings.server.port, 8000);
}

TEST(SettingsLoader, FileFromTheEnvironmentAndErrorsOfAllSources) {
  const TemporaryFile file("version: 1\nserver:\n  port: x\n");
  const Environment environment = environment_of(
      {{"RESTKV_CONFIG", file.path()}, {"RESTKV_THREADS", "many"}, {"RESTKV_TOP_P", "bad, but not ours"}});
  const LoadedSettings loaded = load_settings(kServe, {{find_flag("port"), "--port", "-1"}}, environment);
  EXPECT_THAT(
      loaded.errors,
      ElementsAre(file.path() + ":3:9: server.port: 'x' is not a whole number (examples: 4096, 32k, 32K)",
                  "RESTKV_THREADS: 'many' is not a whole number (examples: 4096, 32k, 32K)",
                  "--port: -1 is out of bounds (0 to 65535)"));
  EXPECT_THAT(
      load_settings(kServe, {{find_flag("config"), "--config", "/no/such.yaml"}}, environment_of({})).errors,
      ElementsAre("/no/such.yaml: cannot open this configuration file"));
}

TEST(ShippedFiles, EachLoadsAndIsWhole) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(RESTKV_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    ++files;
    const FlagValue config{find_flag("config"), "--config", entry.path().string()};
    const LoadedSettings loaded = load_settings(kConfig, {config}, environment_of({}));
    EXPECT_THAT(loaded.errors, IsEmpty()) << entry.path();
    EXPECT_TRUE(check_settings(loaded.settings).ok()) << entry.path();
  }
  EXPECT_GT(files, 0);
}

TEST(Documents, ShownSettingsLoadAgain) {
  LoadedSettings first =
      load("version: 1\nserver:\n  port: 81\n  max_body_size: 10MB\nmodel:\n  path: \"it's ${x} #1\"\n",
           environment_of({{"x", "a\"${y}"}}));
  ASSERT_THAT(first.errors, IsEmpty());
  EXPECT_EQ(first.settings.model.path, "it's a\"${y} #1");
  const LoadedSettings second = load(settings_yaml(first));
  EXPECT_THAT(second.errors, IsEmpty());
  for (const Option& option : option_table()) {
    EXPECT_EQ(option_text(option, first.settings), option_text(option, second.settings)) << option.flag;
  }
}

TEST(ShippedFiles, SchemaIsUpToDate) {
  std::ifstream file(RESTKV_SOURCE_DIR "/configs/schema.json");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_TRUE(text == settings_schema()) << "write it again: restkv config schema > configs/schema.json";
}

TEST(Documents, SchemaHasEveryKey) {
  const auto schema = nlohmann::json::parse(settings_schema());
  EXPECT_EQ(schema["additionalProperties"], false);
  for (const Option& option : option_table()) {
    if (option.section.empty()) continue;
    const auto& section = schema["properties"][std::string(option.section)];
    EXPECT_EQ(section["additionalProperties"], false);
    ASSERT_TRUE(section["properties"].contains(std::string(option.key))) << option.key;
    const auto& property = section["properties"][std::string(option.key)];
    EXPECT_TRUE(property.contains("description"));
    EXPECT_TRUE(property.contains("default") || default_text(option).empty()) << option.key;
    EXPECT_EQ(property.contains("minimum"), option.max > option.min) << option.key;
  }
  EXPECT_EQ(schema["properties"]["server"]["properties"]["port"]["maximum"], 65535);
}

}  // namespace
}  // namespace restkv
