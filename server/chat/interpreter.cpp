#include "server/chat/interpreter.h"

#include <algorithm>

#include "server/chat/argument_reader.h"
#include "server/chat/template_error.h"

namespace restkv::chat {
namespace {

using ExprKind = Expression::Kind;
using StmtKind = Statement::Kind;

// Levels of the tree open at once, over all calls: what the native stack of a thread must hold.
constexpr int kMaxFrames = 1500;

}  // namespace

class Interpreter::Frame {
 public:
  explicit Frame(Interpreter& interpreter) : interpreter_(interpreter) {
    if (++interpreter_.frame_depth_ > kMaxFrames) {
      --interpreter_.frame_depth_;
      throw TemplateError(TemplateErrorKind::kLimit, "calls and blocks nested too deep", interpreter_.offset);
    }
  }
  ~Frame() { --interpreter_.frame_depth_; }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

 private:
  Interpreter& interpreter_;
};

Interpreter::Interpreter(const TemplateTree& tree, const RenderLimits& limits,
                         std::chrono::system_clock::time_point now)
    : Context(limits, now), tree_(tree), globals_(tree.symbols.size()) {
  for (size_t i = 0; i < tree.symbols.size(); ++i) {
    if (const ObjectRef* global = find_global(tree.symbols[i])) globals_[i] = Value(*global);
  }
}

Interpreter::~Interpreter() {
  for (auto& scope : captured_) scope->variables.clear();
}

Text Interpreter::run() {
  Text out;
  execute(tree_.body, nullptr, out);
  return out;
}

// Statements -----------------------------------------------------------------------------------------------------------

Interpreter::Flow Interpreter::execute(const Body& body, const ScopeRef& scope, Text& out) {
  for (const auto& statement : body) {
    Flow flow = execute(*statement, scope, out);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

void Interpreter::write(const Value& value, Text& out) {
  if (value.is_string()) {
    out.append(value.text());
    charge_bytes(value.text().size());
  } else {
    out.append(str(value));
  }
  check_size(out.size());
}

void Interpreter::write_string(const Value& value, Text& out) {
  if (!value.is_string()) fail("expected a string from the block, " + value.type_name() + " found");
  write(value, out);
}

Interpreter::Flow Interpreter::execute(const Statement& statement, const ScopeRef& scope, Text& out) {
  Frame frame(*this);
  offset = statement.offset;
  charge(1);
  switch (statement.kind) {
    case StmtKind::kData:
      charge_bytes(statement.data.size());
      out.append(statement.data);
      check_size(out.size());
      return Flow::kNext;
    case StmtKind::kOutput:
      for (const auto& expression : statement.expressions) write(evaluate(*expression, scope), out);
      return Flow::kNext;
    case StmtKind::kIf: return execute_if(statement, scope, out);
    case StmtKind::kFor: {
      Value iterable = evaluate(*statement.loop->iterable, scope);
      offset = statement.offset;
      execute_for(*statement.loop, iterable, 0, scope, out);
      return Flow::kNext;
    }
    case StmtKind::kSet:
      assign(statement.targets[0], evaluate(*statement.expressions[0], scope), scope);
      return Flow::kNext;
    case StmtKind::kMacro: {
      Value macro = make_macro(*statement.macro, scope);
      if (scope) {
        set(*scope, statement.symbol, std::move(macro));
      } else {
        globals_[statement.symbol] = std::move(macro);
      }
      return Flow::kNext;
    }
    case StmtKind::kBreak: return Flow::kBreak;
    case StmtKind::kContinue: return Flow::kContinue;
    default: return execute_block(statement, scope, out);
  }
}

Interpreter::Flow Interpreter::execute_if(const Statement& statement, const ScopeRef& scope, Text& out) {
  for (size_t i = 0; i < statement.expressions.size(); ++i) {
    if (truth(evaluate(*statement.expressions[i], scope))) return execute(statement.bodies[i], scope, out);
  }
  if (statement.bodies.size() > statement.expressions.size())
    return execute(statement.bodies.back(), scope, out);
  return Flow::kNext;
}

void Interpreter::execute_for(const ForStatement& loop, const Value& iterable, int64_t depth0,
                              const ScopeRef& scope, Text& out) {
  SequenceRef sequence = iterate(iterable);
  auto passes = [&](const Value& item) {
    auto inner = std::make_shared<Scope>(scope);
    assign(loop.target, item, inner);
    return truth(evaluate(*loop.filter, inner));
  };
  // As in Jinja2 the filter of an element runs after the turns before it, and sees what they set in a namespace; but
  // `loop` numbers the elements, which needs all of them first.
  bool filters_by_turn = loop.filter && !loop.uses_loop;
  if (loop.filter && !filters_by_turn) {
    std::vector<Value> kept;
    for (const Value& item : sequence->items) {
      if (passes(item)) kept.push_back(item);
    }
    sequence = make_list(std::move(kept)).as_sequence();
  }
  auto state = std::make_shared<LoopObject>(sequence, depth0);
  if (loop.is_recursive) {
    state->recursive = &loop;
    state->scope = scope;
  }
  if (state->nesting > kMaxNesting) fail("values nested too deep");
  bool has_completed = false;  // a turn that break or continue ended does not keep "else" from running
  for (const Value& item : sequence->items) {
    charge(1);
    if (filters_by_turn && !passes(item)) continue;
    auto inner = std::make_shared<Scope>(scope);
    set(*inner, kLoopSymbol, Value(ObjectRef(state)));
    assign(loop.target, item, inner);
    Flow flow = execute(loop.body, inner, out);
    if (flow == Flow::kBreak) break;
    has_completed |= flow == Flow::kNext;
    ++state->index0;
  }
  if (!has_completed) execute(loop.otherwise, std::make_shared<Scope>(scope), out);
}

Interpreter::Flow Interpreter::execute_block(const Statement& statement, const ScopeRef& scope, Text& out) {
  auto inner = std::make_shared<Scope>(scope);
  switch (statement.kind) {
    case StmtKind::kSetBlock: {
      Text text;
      Flow flow = execute(statement.bodies[0], inner, text);
      if (flow != Flow::kNext) return flow;
      assign(statement.targets[0], apply_filters(statement.filters, make_string(std::move(text)), scope),
             scope);
      return Flow::kNext;
    }
    case StmtKind::kFilterBlock: {
      Text text;
      Flow flow = execute(statement.bodies[0], inner, text);
      if (flow != Flow::kNext) return flow;
      write_string(apply_filters(statement.filters, make_string(std::move(text)), scope), out);
      return Flow::kNext;
    }
    case StmtKind::kWith:
      for (size_t i = 0; i < statement.targets.size(); ++i) {
        assign(statement.targets[i], evaluate(*statement.expressions[i], scope), inner);
      }
      return execute(statement.bodies[0], inner, out);
    case StmtKind::kScope: return execute(statement.bodies[0], inner, out);
    default: break;
  }
  // A call block: the call, with the body as its keyword argument "caller".
  const Expression& call_expression = *statement.expressions[0];
  Value callee = evaluate(*call_expression.items[0], scope);
  for (size_t i = 0; i + 1 < call_expression.steps.size(); ++i)
    callee = apply_step(call_expression.steps[i], callee, scope);
  CallArguments arguments = evaluate_arguments(call_expression.steps.back().arguments, scope);
  arguments.keyword.emplace_back("caller", make_macro(*statement.macro, scope));
  offset = statement.offset;
  write_string(call(callee, arguments), out);
  return Flow::kNext;
}

// Variables ------------------------------------------------------------------------------------------------------------

Value Interpreter::look_up(int symbol, const Scope* scope) const {
  for (; scope; scope = scope->parent.get()) {
    for (const auto& [name, value] : scope->variables) {
      if (name == symbol) return value;
    }
  }
  if (globals_[symbol]) return *globals_[symbol];
  return Value::undefined("'" + tree_.symbols[symbol] + "' is undefined");
}

void Interpreter::set(Scope& scope, int symbol, Value value) {
  for (auto& [name, old] : scope.variables) {
    if (name == symbol) {
      old = std::move(value);
      return;
    }
  }
  scope.variables.emplace_back(symbol, std::move(value));
}

void Interpreter::assign(const Target& target, const Value& value, const ScopeRef& scope) {
  if (target.is_tuple) {
    offset = target.offset;
    require_defined(value);
    SequenceRef items = iterate(value);
    if (items->items.size() != target.items.size()) {
      fail("cannot unpack " + std::to_string(items->items.size()) + " values into " +
           std::to_string(target.items.size()) + " names");
    }
    for (size_t i = 0; i < target.items.size(); ++i) assign(target.items[i], items->items[i], scope);
  } else if (!target.attribute.empty()) {
    Value holder = look_up(target.symbol, scope.get());
    auto* space = mutable_object_as<NamespaceObject>(holder, ObjectKind::kNamespace);
    offset = target.offset;
    if (!space) fail("cannot assign attribute on non-namespace object");
    charge(1);
    space->attributes.set(Value(target.attribute), value);
  } else if (scope) {
    set(*scope, target.symbol, value);
  } else {
    globals_[target.symbol] = value;
  }
}

// Macros and calls -----------------------------------------------------------------------------------------------------

Value Interpreter::make_macro(const MacroDefinition& definition, const ScopeRef& scope) {
  charge(1);
  if (scope) captured_.push_back(scope);
  return ObjectRef(std::make_shared<MacroObject>(&definition, scope));
}

Value Interpreter::call(const Value& callee, CallArguments& arguments) {
  charge(1);
  require_defined(callee);
  if (!callee.is_object()) fail("'" + callee.type_name() + "' object is not callable");
  Object& object = *callee.as_object();
  switch (object.kind) {
    case ObjectKind::kFunction: return static_cast<FunctionObject&>(object).function(*this, arguments);
    case ObjectKind::kMethod: {
      auto& method = static_cast<MethodObject&>(object);
      return method.method(*this, method.self, arguments);
    }
    case ObjectKind::kMacro: return call_macro(static_cast<MacroObject&>(object), arguments);
    case ObjectKind::kLoop: return call_loop(callee, arguments);
    case ObjectKind::kJoiner: {
      auto& joiner = static_cast<JoinerObject&>(object);
      if (std::exchange(joiner.used, true)) return joiner.separator;
      return Value("");
    }
    default: fail("'" + callee.type_name() + "' object is not callable");
  }
}

namespace {
// One call inside another; the limit of RenderLimits::depth.
class CallLevel {
 public:
  CallLevel(const Context& context, int& depth) : depth_(depth) {
    if (depth >= context.limits().depth) {
      throw TemplateError(TemplateErrorKind::kLimit,
                          "calls nested more than " + std::to_string(context.limits().depth) + " deep",
                          context.offset);
    }
    ++depth_;
  }
  ~CallLevel() { --depth_; }

 private:
  int& depth_;
};

}  // namespace

Value Interpreter::call_macro(const MacroObject& macro, CallArguments& arguments) {
  CallLevel level(*this, call_depth_);
  const MacroDefinition& definition = *macro.definition;
  auto scope = std::make_shared<Scope>(macro.scope);
  size_t num_parameters = definition.parameters.size();
  bool has_caller_parameter = false;
  std::vector<Value> given(num_parameters);
  std::vector<bool> is_given(num_parameters);
  for (size_t i = 0; i < num_parameters; ++i) {
    has_caller_parameter |= definition.parameters[i].first == kCallerSymbol;
    is_given[i] =
        i < arguments.positional.size() || take_keyword(arguments, definition.parameters[i].second, given[i]);
    if (i < arguments.positional.size()) given[i] = arguments.positional[i];
  }
  if (definition.uses_caller && !has_caller_parameter) {
    Value caller = Value::undefined("No caller defined");
    take_keyword(arguments, "caller", caller);
    set(*scope, kCallerSymbol, std::move(caller));
  }
  if (definition.uses_kwargs) {
    Dict rest;
    for (auto& [name, value] : arguments.keyword) set_entry(rest, Value(name), std::move(value));
    set(*scope, kKwargsSymbol, make_dict(std::move(rest)));
  } else if (!arguments.keyword.empty()) {
    fail("macro '" + definition.name + "' takes no keyword argument '" + arguments.keyword[0].first + "'");
  }
  if (definition.uses_varargs) {
    size_t used = std::min(num_parameters, arguments.positional.size());
    set(*scope, kVarargsSymbol,
        make_tuple(
            {arguments.positional.begin() + static_cast<std::ptrdiff_t>(used), arguments.positional.end()}));
  } else if (arguments.positional.size() > num_parameters) {
    fail("macro '" + definition.name + "' takes not more than " + std::to_string(num_parameters) +
         " argument(s)");
  }
  size_t first_default = num_parameters - definition.defaults.size();
  for (size_t i = 0; i < num_parameters; ++i) {
    const auto& [symbol, name] = definition.parameters[i];
    if (is_given[i]) {
      set(*scope, symbol, given[i]);
    } else if (i >= first_default) {
      set(*scope, symbol, evaluate(*definition.defaults[i - first_default], scope));
    } else {
      set(*scope, symbol, Value::undefined("parameter '" + name + "' was not provided"));
    }
  }
  Text out;
  execute(definition.body, scope, out);
  return make_string(std::move(out));
}

Value Interpreter::call_loop(const Value& loop, CallArguments& arguments) {
  auto* state = mutable_object_as<LoopObject>(loop, ObjectKind::kLoop);
  if (!state->recursive) fail("The loop must have the 'recursive' marker to be called recursively.");
  ArgumentReader reader(*this, "loop", arguments);
  Value iterable = reader.require("iterable");
  reader.finish();
  CallLevel level(*this, call_depth_);
  Text out;
  execute_for(*state->recursive, iterable, state->depth0 + 1, state->scope, out);
  return make_string(std::move(out));
}

// Expressions ----------------------------------------------------------------------------------------------------------

Value Interpreter::evaluate(const Expression& expression, const ScopeRef& scope) {
  charge(1);
  if (expression.kind == ExprKind::kConstant) return expression.value;
  if (expression.kind == ExprKind::kName) return look_up(expression.symbol, scope.get());
  Frame frame(*this);
  offset = expression.offset;
  const auto& items = expression.items;
  switch (expression.kind) {
    case ExprKind::kConstant:
    case ExprKind::kName: break;
    case ExprKind::kTuple: return make_tuple(evaluate_all(items, scope));
    case ExprKind::kList: return make_list(evaluate_all(items, scope));
    case ExprKind::kDict: {
      Dict dict;
      for (size_t i = 0; i < items.size(); i += 2) {
        Value key = evaluate(*items[i], scope);
        Value value = evaluate(*items[i + 1], scope);
        offset = items[i]->offset;
        set_entry(dict, key, std::move(value));
      }
      return make_dict(std::move(dict));
    }
    case ExprKind::kConcat: {
      Text text;
      for (const auto& item : items) {
        Value value = evaluate(*item, scope);
        offset = item->offset;
        write(value, text);
      }
      return make_string(std::move(text));
    }
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      Value value;
      for (const auto& item : items) {
        value = evaluate(*item, scope);
        if (truth(value) == (expression.kind == ExprKind::kOr)) break;
      }
      return value;
    }
    case ExprKind::kNot: return Value(!truth(evaluate(*items[0], scope)));
    case ExprKind::kNegate: return negate(evaluate(*items[0], scope));
    case ExprKind::kPositive: return positive(evaluate(*items[0], scope));
    case ExprKind::kArithmetic: return evaluate_chain(expression, scope);
    case ExprKind::kCompare: return evaluate_compare(expression, scope);
    case ExprKind::kCondition:
      if (truth(evaluate(*items[0], scope))) return evaluate(*items[1], scope);
      if (items[2]) return evaluate(*items[2], scope);
      return Value::undefined("the inline if-expression evaluated to false and no else section was defined.");
    case ExprKind::kPostfix: {
      Value value = evaluate(*items[0], scope);
      for (const Step& step : expression.steps) value = apply_step(step, value, scope);
      return value;
    }
  }
  return Value();
}

Value Interpreter::evaluate_chain(const Expression& chain, const ScopeRef& scope) {
  Value value = evaluate(*chain.items[0], scope);
  for (size_t i = 0; i < chain.operators.size(); ++i) {
    Value right = evaluate(*chain.items[i + 1], scope);
    offset = chain.operator_offsets[i];
    value = apply(chain.operators[i], value, right);
  }
  return value;
}

Value Interpreter::evaluate_compare(const Expression& chain, const ScopeRef& scope) {
  Value left = evaluate(*chain.items[0], scope);
  for (size_t i = 0; i < chain.operators.size(); ++i) {
    Value right = evaluate(*chain.items[i + 1], scope);
    offset = chain.operator_offsets[i];
    if (!truth(apply(chain.operators[i], left, right))) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::apply_step(const Step& step, const Value& value, const ScopeRef& scope) {
  charge(1);
  offset = step.offset;
  switch (step.kind) {
    case Step::Kind::kAttribute: return get_attribute(value, step.name);
    case Step::Kind::kItem: {
      Value key = evaluate(*step.index, scope);
      offset = step.offset;
      return get_item(value, key);
    }
    case Step::Kind::kSlice: {
      Value bounds[3];
      for (int i = 0; i < 3; ++i) {
        if (step.slice[i]) bounds[i] = evaluate(*step.slice[i], scope);
      }
      offset = step.offset;
      return get_slice(value, bounds[0], bounds[1], bounds[2]);
    }
    default: break;
  }
  CallArguments arguments = evaluate_arguments(step.arguments, scope);
  offset = step.offset;
  if (step.kind == Step::Kind::kCall) return call(value, arguments);
  if (step.kind == Step::Kind::kFilter) return apply_filter(*this, step.name, value, arguments);
  return Value(apply_test(*this, step.name, value, arguments) != step.is_negated);
}

std::vector<Value> Interpreter::evaluate_all(const std::vector<ExpressionPtr>& expressions,
                                             const ScopeRef& scope) {
  std::vector<Value> values;
  values.reserve(expressions.size());
  for (const auto& expression : expressions) values.push_back(evaluate(*expression, scope));
  return values;
}

CallArguments Interpreter::evaluate_arguments(const Arguments& arguments, const ScopeRef& scope) {
  CallArguments result;
  result.positional = evaluate_all(arguments.positional, scope);
  for (const auto& [name, expression] : arguments.keyword) {
    result.keyword.emplace_back(name, evaluate(*expression, scope));
  }
  if (arguments.star) {
    SequenceRef more = iterate(evaluate(*arguments.star, scope));
    charge(static_cast<int64_t>(more->items.size()));
    result.positional.insert(result.positional.end(), more->items.begin(), more->items.end());
  }
  if (arguments.star_star) {
    Value more = evaluate(*arguments.star_star, scope);
    if (!more.is_dict()) fail("argument after ** must be a mapping, not " + more.type_name());
    for (const auto& [name, value] : more.as_dict()->entries()) {
      charge(1);
      if (!name.is_string()) fail("keywords must be strings");
      result.keyword.emplace_back(name.bytes(), value);
    }
  }
  return result;
}

Value Interpreter::apply_filters(const std::vector<Step>& filters, Value value, const ScopeRef& scope) {
  for (const Step& step : filters) value = apply_step(step, value, scope);
  return value;
}

}  // namespace restkv::chat
