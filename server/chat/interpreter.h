// Runs a parsed template once. Scopes are Jinja2's: loops, macros, blocks of call, filter, set and with have their own;
// if has none; a macro sees the variables around its definition as they are when it is called.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/chat/ast.h"
#include "server/chat/context.h"

namespace restkv::chat {

struct Scope {
  explicit Scope(std::shared_ptr<Scope> parent) : parent(std::move(parent)) {}
  std::shared_ptr<Scope> parent;                 // null: the outermost
  std::vector<std::pair<int, Value>> variables;  // symbol, value
};

class Interpreter : public Context {
 public:
  Interpreter(const TemplateTree& tree, const RenderLimits& limits,
              std::chrono::system_clock::time_point now);
  ~Interpreter() override;

  void define(int symbol, Value value) { globals_[symbol] = std::move(value); }
  // The rendered template. Throws TemplateError.
  Text run();

  Value call(const Value& callee, CallArguments& arguments) override;

 private:
  using ScopeRef = std::shared_ptr<Scope>;
  enum class Flow { kNext, kBreak, kContinue };
  class Frame;  // one level of recursion over the tree

  Flow execute(const Body& body, const ScopeRef& scope, Text& out);
  Flow execute(const Statement& statement, const ScopeRef& scope, Text& out);
  Flow execute_if(const Statement& statement, const ScopeRef& scope, Text& out);
  void execute_for(const ForStatement& loop, const Value& iterable, int64_t depth0, const ScopeRef& scope,
                   Text& out);
  Flow execute_block(const Statement& statement, const ScopeRef& scope, Text& out);
  void write(const Value& value, Text& out);
  void write_string(const Value& value, Text& out);  // what a block gave: an error for another kind

  Value evaluate(const Expression& expression, const ScopeRef& scope);
  Value evaluate_chain(const Expression& chain, const ScopeRef& scope);
  Value evaluate_compare(const Expression& chain, const ScopeRef& scope);
  Value apply_step(const Step& step, const Value& value, const ScopeRef& scope);
  std::vector<Value> evaluate_all(const std::vector<ExpressionPtr>& expressions, const ScopeRef& scope);
  CallArguments evaluate_arguments(const Arguments& arguments, const ScopeRef& scope);
  Value apply_filters(const std::vector<Step>& filters, Value value, const ScopeRef& scope);

  Value look_up(int symbol, const Scope* scope) const;
  void assign(const Target& target, const Value& value, const ScopeRef& scope);
  void set(Scope& scope, int symbol, Value value);
  Value make_macro(const MacroDefinition& definition, const ScopeRef& scope);
  Value call_macro(const MacroObject& macro, CallArguments& arguments);
  Value call_loop(const Value& loop, CallArguments& arguments);

  const TemplateTree& tree_;
  std::vector<std::optional<Value>> globals_;  // [symbols], of the outermost scope
  std::vector<ScopeRef> captured_;  // scopes that macros hold: emptied at the end, they may form rings
  int call_depth_ = 0;
  int frame_depth_ = 0;
};

}  // namespace restkv::chat
