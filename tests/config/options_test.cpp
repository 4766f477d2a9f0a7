// The option table agrees with itself, and every row can be reached by flag, key and environment.
#include "server/config/options.h"

#include <cctype>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/config/settings_loader.h"

namespace restkv {
namespace {

// A legal value that is not the default, as text.
std::string other_value(const Option& option) {
  const std::string standard = default_text(option);
  switch (option.type) {
    case OptionType::kBool: return standard == "true" ? "false" : "true";
    case OptionType::kEnum: return std::string(option.choices[option.choices[0] == standard ? 1 : 0]);
    case OptionType::kString:
    case OptionType::kPath: return "other";
    case OptionType::kIntList: return "1,2,3";
    case OptionType::kFloat: return standard == "1" || option.max < 1 ? "0.5" : "1";
    default: break;
  }
  Settings settings;
  for (const double bound : {option.min, option.max}) {
    std::string text = std::to_string(static_cast<int64_t>(bound));
    if (option.type == OptionType::kDuration) text += "ms";
    if (set_option(option, text, settings).ok() && option_text(option, settings) != standard) {
      return option_text(option, settings);
    }
  }
  ADD_FAILURE() << option.flag << " has one legal value only";
  return standard;
}

TEST(OptionTable, NamesAreUnique) {
  std::set<std::string> flags, keys, environment;
  for (const Option& option : option_table()) {
    EXPECT_TRUE(flags.insert(std::string(option.flag)).second) << option.flag;
    for (const std::string_view alias : option.aliases)
      EXPECT_TRUE(flags.insert(std::string(alias)).second) << alias;
    EXPECT_TRUE(environment.insert(environment_name(option)).second) << option.flag;
    if (option.section.empty()) continue;
    EXPECT_TRUE(keys.insert(std::string(option.section) + "." + std::string(option.key)).second)
        << option.key;
  }
}

TEST(OptionTable, RowsAreComplete) {
  for (const Option& option : option_table()) {
    SCOPED_TRACE(option.flag);
    EXPECT_FALSE(option.help.empty());
    EXPECT_NE(option.help.back(), '.') << "the pages add it";
    EXPECT_NE(option.verbs, 0u);
    EXPECT_EQ(option.section.empty(), option.key.empty());
    EXPECT_EQ(option.flag.find('_'), std::string_view::npos);
    EXPECT_EQ(option.key.find('-'), std::string_view::npos);
    EXPECT_EQ(option.type == OptionType::kEnum, !option.choices.empty());
    const bool has_names = std::holds_alternative<EnumField>(option.field) ||
                           std::holds_alternative<std::optional<std::string>* (*)(Settings&)>(option.field);
    EXPECT_EQ(option.type == OptionType::kEnum, has_names);
    const bool is_number = option.type == OptionType::kInt || option.type == OptionType::kFloat ||
                           option.type == OptionType::kSize || option.type == OptionType::kDuration ||
                           option.type == OptionType::kIntList;
    EXPECT_EQ(is_number, option.max > option.min);
  }
}

TEST(OptionTable, DefaultsAreLegalAndReadBack) {
  for (const Option& option : option_table()) {
    SCOPED_TRACE(option.flag);
    const std::string text = default_text(option);
    if (text.empty()) continue;  // no text is the default of names, paths and lists
    Settings settings;
    const Status status = set_option(option, text, settings);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(option_text(option, settings), text);
  }
}

TEST(OptionTable, BoundsAreKeptAndNamed) {
  for (const Option& option : option_table()) {
    if (option.type != OptionType::kInt) continue;
    SCOPED_TRACE(option.flag);
    Settings settings;
    const auto at = [&](double bound) { return std::to_string(static_cast<int64_t>(bound)); };
    EXPECT_TRUE(set_option(option, at(option.min), settings).ok());
    EXPECT_TRUE(set_option(option, at(option.max), settings).ok());
    const std::string bounds = " is out of bounds (" + at(option.min) + " to " + at(option.max) + ")";
    EXPECT_EQ(set_option(option, at(option.min - 1), settings).message(), at(option.min - 1) + bounds);
    EXPECT_EQ(set_option(option, at(option.max + 1), settings).message(), at(option.max + 1) + bounds);
    EXPECT_EQ(option_text(option, settings), at(option.max)) << "an error leaves the value";
  }
}

TEST(OptionTable, EachRowIsReachedByFlagKeyAndEnvironment) {
  const Environment nothing = [](const std::string&) { return std::nullopt; };
  for (const Option& option : option_table()) {
    SCOPED_TRACE(option.flag);
    if (option.flag == "config") continue;  // names a file; settings_loader_test reads one
    const std::string value = other_value(option);
    const auto verb = static_cast<Verb>(option.verbs & -option.verbs);  // the first that takes it

    EXPECT_EQ(find_flag(option.flag), &option);
    const LoadedSettings by_flag =
        load_settings(verb, {{&option, "--" + std::string(option.flag), value}}, nothing);
    EXPECT_THAT(by_flag.errors, testing::IsEmpty());
    EXPECT_EQ(option_text(option, by_flag.settings), value);

    const std::string name = environment_name(option);
    const LoadedSettings by_environment = load_settings(verb, {}, [&](const std::string& asked) {
      return asked == name ? std::optional(value) : std::nullopt;
    });
    EXPECT_THAT(by_environment.errors, testing::IsEmpty());
    // The one variable that may hold the value itself is then named as its source.
    EXPECT_EQ(option_text(option, by_environment.settings),
              option.flag == "api-key" ? "env:RESTKV_API_KEY" : value);

    if (option.section.empty()) continue;
    EXPECT_EQ(find_key(option.section, option.key), &option);
    LoadedSettings by_key;
    apply_yaml("version: 1\n" + std::string(option.section) + ":\n  " + std::string(option.key) + ": " +
                   value + "\n",
               "test.yaml", nothing, by_key);
    EXPECT_THAT(by_key.errors, testing::IsEmpty());
    EXPECT_EQ(option_text(option, by_key.settings), value);
  }
}

TEST(OptionTable, KnowsVllmAndLlamaCppNames) {
  EXPECT_EQ(find_flag("gpu-memory-utilization")->flag, "memory-fraction");
  EXPECT_EQ(find_flag("kv-cache-dtype")->flag, "cache-dtype");
  EXPECT_EQ(find_flag("max_model_len")->flag, "max-model-len");
  EXPECT_EQ(find_flag("m")->flag, "model");
  EXPECT_EQ(find_flag("c")->flag, "max-model-len");
  EXPECT_EQ(find_flag("t")->flag, "threads");
}

// The names of section cache stand in two tables: each must be one that requests know.
TEST(CacheOptions, EveryNameResolves) {
  for (const char* key : {"policy", "preset", "allocation", "decode", "group"}) {
    const Option& option = *find_key("cache", key);
    for (const std::string_view choice : option.choices) {
      Settings settings;
      EXPECT_TRUE(set_option(option, choice, settings).ok()) << choice;
      const Status status = resolve_cache_options(settings);
      EXPECT_TRUE(status.ok()) << key << " " << choice << ": " << status.message();
    }
    Settings settings;
    EXPECT_FALSE(set_option(option, "nothing", settings).ok()) << key;
  }
}

TEST(CacheOptions, DefaultIsRestkvWith4096) {
  Settings settings;
  ASSERT_TRUE(resolve_cache_options(settings).ok());
  EXPECT_EQ(settings.engine.cache.policy, PolicyKind::kRestkv);
  EXPECT_EQ(settings.engine.cache.budget, 4096);
}

TEST(CacheOptions, ErrorsNameFlagKeyAndTheSmallestBudget) {
  const auto error_of = [](auto... flags) {
    Settings settings;
    for (const auto& [flag, value] : {flags...}) {
      const Status status = set_option(*find_flag(flag), value, settings);
      if (!status.ok()) return status.message();
    }
    return resolve_cache_options(settings).message();
  };
  using Flag = std::pair<const char*, const char*>;
  using testing::HasSubstr;
  using testing::StartsWith;
  EXPECT_THAT(error_of(Flag{"budget", "1"}), StartsWith("--budget, cache.budget: is 1, must be between 38 "));
  EXPECT_THAT(error_of(Flag{"budget", "40"}, Flag{"stride", "8"}), HasSubstr("must be between 44 "));
  EXPECT_THAT(error_of(Flag{"budget", "512"}, Flag{"max-budget", "256"}), HasSubstr(" and 256"));
  EXPECT_THAT(error_of(Flag{"decode", "grow"}, Flag{"allow-grow", "false"}),
              StartsWith("--decode, cache.decode: "));
  EXPECT_THAT(error_of(Flag{"budget", "2147483648"}), HasSubstr("out of bounds (1 to 1048576)"));
  EXPECT_THAT(error_of(Flag{"fraction", "0"}), HasSubstr("out of bounds"));
  EXPECT_THAT(error_of(Flag{"policy", "restk"}), HasSubstr("did you mean 'restkv'?"));
}

TEST(OptionTable, EnvironmentNamesFollowFromFlags) {
  EXPECT_EQ(environment_name(*find_flag("max-model-len")), "RESTKV_MAX_MODEL_LEN");
}

TEST(CheckSettings, OpenAddressesNeedAWord) {
  Settings settings;
  EXPECT_TRUE(check_settings(settings).ok());
  settings.server.host = "0.0.0.0";
  EXPECT_EQ(
      check_settings(settings).message(),
      "server.host: '0.0.0.0' can be reached from other machines and there is no API key; use 127.0.0.1, "
      "name keys with --api-key (in a container: RESTKV_API_KEY), or allow it with --insecure "
      "(RESTKV_INSECURE=1, "
      "insecure: true in section server)");
  for (const char* open : {"::", "192.168.0.1", "::ffff:127.0.0.1"}) {
    settings.server.host = open;
    EXPECT_FALSE(check_settings(settings).ok()) << open;
  }
  for (const char* loopback : {"127.0.0.1", "127.1.2.3", "::1"}) {
    settings.server.host = loopback;
    EXPECT_TRUE(check_settings(settings).ok()) << loopback;
  }
  settings.server.host = "127.0.0.1.example.org";
  EXPECT_EQ(check_settings(settings).message(),
            "server.host: '127.0.0.1.example.org' is not an IP address (127.0.0.1 is this machine alone)");
  settings.server.host = "0.0.0.0";
  settings.server.insecure = true;
  EXPECT_TRUE(check_settings(settings).ok());
  settings.server.insecure = false;
  settings.server.api_key = "env:KEY";
  EXPECT_TRUE(check_settings(settings).ok());
  settings = Settings();
  settings.grpc.host = "0.0.0.0";
  EXPECT_FALSE(check_settings(settings).ok());
  settings.grpc.enabled = false;
  EXPECT_TRUE(check_settings(settings).ok());
}

}  // namespace
}  // namespace restkv
