#include "server/chat/expression_parser.h"

#include <algorithm>
#include <memory>

#include "server/chat/context.h"
#include "server/chat/parser.h"
#include "server/chat/template_error.h"

namespace restkv::chat {

using ExprKind = Expression::Kind;

ExpressionParser::ExpressionParser(std::string_view source) : tokens_(tokenize(source)) {
  for (const char* name : {"loop", "caller", "varargs", "kwargs"}) symbol_of(name);
}

void ExpressionParser::enter() {
  if (depth_ >= kMaxParseDepth) {
    fail("nested more than " + std::to_string(kMaxParseDepth) + " deep", current().offset);
  }
  ++depth_;
}

void ExpressionParser::fail(const std::string& message, size_t offset) {
  throw TemplateError(TemplateErrorKind::kSyntax, message, offset);
}

const Token& ExpressionParser::current() const { return tokens_[at_]; }

const Token& ExpressionParser::look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }

const Token& ExpressionParser::take() {
  const Token& token = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool ExpressionParser::skip_operator(std::string_view op) {
  return current().is_operator(op) && (++at_, true);
}

bool ExpressionParser::skip_name(std::string_view name) { return current().is_name(name) && (++at_, true); }

std::string ExpressionParser::describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kData: return "template text";
    case TokenKind::kVariableBegin: return "'{{'";
    case TokenKind::kVariableEnd: return "'}}'";
    case TokenKind::kBlockBegin: return "'{%'";
    case TokenKind::kBlockEnd: return "'%}'";
    case TokenKind::kString: return "a string";
    case TokenKind::kEnd: return "the end of the template";
    default: return "'" + token.text + "'";
  }
}

void ExpressionParser::expect_operator(std::string_view op) {
  if (!skip_operator(op))
    fail("expected '" + std::string(op) + "', got " + describe(current()), current().offset);
}

void ExpressionParser::expect_name(std::string_view name) {
  if (!skip_name(name))
    fail("expected '" + std::string(name) + "', got " + describe(current()), current().offset);
}

void ExpressionParser::expect_kind(TokenKind kind, const char* what) {
  if (current().kind != kind)
    fail(std::string("expected ") + what + ", got " + describe(current()), current().offset);
  ++at_;
}

std::string ExpressionParser::take_name() {
  if (current().kind != TokenKind::kName)
    fail("expected a name, got " + describe(current()), current().offset);
  return take().text;
}

int ExpressionParser::symbol_of(const std::string& name) {
  auto [found, is_new] = numbers_.emplace(name, static_cast<int>(symbols_.size()));
  if (is_new) symbols_.push_back(name);
  return found->second;
}

std::unique_ptr<Expression> ExpressionParser::make_expression(ExprKind kind, size_t offset) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->offset = offset;
  return expression;
}

// One expression, or a tuple without brackets. `end`: a name that may end it.
ExpressionPtr ExpressionParser::parse_tuple(bool with_condition, std::string_view end, bool may_be_empty) {
  auto tuple = make_expression(ExprKind::kTuple, current().offset);
  bool is_tuple = false;
  while (true) {
    const Token& token = current();
    if (token.kind == TokenKind::kVariableEnd || token.kind == TokenKind::kBlockEnd ||
        token.is_operator(")") || (!end.empty() && token.is_name(end))) {
      break;
    }
    tuple->items.push_back(parse_expression(with_condition));
    if (!skip_operator(",")) break;
    is_tuple = true;
  }
  if (is_tuple) return tuple;
  if (tuple->items.empty()) {
    if (!may_be_empty) fail("expected an expression, got " + describe(current()), current().offset);
    return tuple;
  }
  return std::move(tuple->items[0]);
}

ExpressionPtr ExpressionParser::parse_expression(bool with_condition) {
  Level level(*this);
  if (!with_condition) return parse_or();
  size_t offset = current().offset;
  size_t num_unknown = unknown_names_.size();
  ExpressionPtr result = parse_or();
  int links = 0;
  while (current().is_name("if")) {
    // Each further "if" nests the expressions before it one deeper.
    if (++links > kMaxParseDepth) fail("too many conditions in one expression", current().offset);
    auto condition = make_expression(ExprKind::kCondition, offset);
    ++at_;
    condition->items.push_back(parse_or());
    condition->items.push_back(std::move(result));
    condition->items.push_back(skip_name("else") ? parse_expression() : nullptr);
    unknown_names_.resize(num_unknown);
    result = std::move(condition);
  }
  return result;
}

ExpressionPtr ExpressionParser::parse_or() {
  return parse_list_of(
      ExprKind::kOr, [this] { return parse_and(); }, [this] { return skip_name("or"); });
}

ExpressionPtr ExpressionParser::parse_and() {
  return parse_list_of(
      ExprKind::kAnd, [this] { return parse_not(); }, [this] { return skip_name("and"); });
}

ExpressionPtr ExpressionParser::parse_concat() {
  return parse_list_of(
      ExprKind::kConcat, [this] { return parse_products(); }, [this] { return skip_operator("~"); });
}

template <class ParseItem, class SkipSeparator>
ExpressionPtr ExpressionParser::parse_list_of(ExprKind kind, ParseItem parse_item,
                                              SkipSeparator skip_separator) {
  size_t offset = current().offset;
  ExpressionPtr first = parse_item();
  if (!skip_separator()) return first;
  auto list = make_expression(kind, offset);
  list->items.push_back(std::move(first));
  do {
    list->items.push_back(parse_item());
  } while (skip_separator());
  return list;
}

ExpressionPtr ExpressionParser::parse_not() {
  if (!current().is_name("not")) return parse_compare();
  Level level(*this);
  auto expression = make_expression(ExprKind::kNot, current().offset);
  ++at_;
  expression->items.push_back(parse_not());
  return expression;
}

// items[0] op items[1] op ... `find_operator` gives the operator under the current token and skips it.
template <class ParseItem, class FindOperator>
ExpressionPtr ExpressionParser::parse_chain(ExprKind kind, ParseItem parse_item, FindOperator find_operator) {
  size_t offset = current().offset;
  ExpressionPtr first = parse_item();
  size_t operator_offset = current().offset;
  Operator op;
  if (!find_operator(op)) return first;
  auto chain = make_expression(kind, offset);
  chain->items.push_back(std::move(first));
  do {
    chain->operators.push_back(op);
    chain->operator_offsets.push_back(operator_offset);
    chain->items.push_back(parse_item());
    operator_offset = current().offset;
  } while (find_operator(op));
  return chain;
}

bool ExpressionParser::find_in(std::initializer_list<std::pair<std::string_view, Operator>> table,
                               Operator& op) {
  for (const auto& [text, value] : table) {
    if (!skip_operator(text)) continue;
    op = value;
    return true;
  }
  return false;
}

ExpressionPtr ExpressionParser::parse_compare() {
  return parse_chain(
      ExprKind::kCompare, [this] { return parse_sums(); },
      [this](Operator& op) {
        if (skip_name("in")) return op = Operator::kIn, true;
        if (current().is_name("not") && look().is_name("in")) return at_ += 2, op = Operator::kNotIn, true;
        return find_in({{"==", Operator::kEqual},
                        {"!=", Operator::kNotEqual},
                        {"<", Operator::kLess},
                        {"<=", Operator::kLessEqual},
                        {">", Operator::kGreater},
                        {">=", Operator::kGreaterEqual}},
                       op);
      });
}

ExpressionPtr ExpressionParser::parse_sums() {
  return parse_chain(
      ExprKind::kArithmetic, [this] { return parse_concat(); },
      [this](Operator& op) {
        return find_in({{"+", Operator::kAdd}, {"-", Operator::kSubtract}}, op);
      });
}

ExpressionPtr ExpressionParser::parse_products() {
  return parse_chain(
      ExprKind::kArithmetic, [this] { return parse_powers(); },
      [this](Operator& op) {
        return find_in({{"*", Operator::kMultiply},
                        {"/", Operator::kDivide},
                        {"//", Operator::kFloorDivide},
                        {"%", Operator::kModulo}},
                       op);
      });
}

ExpressionPtr ExpressionParser::parse_powers() {
  return parse_chain(
      ExprKind::kArithmetic, [this] { return parse_unary(); },
      [this](Operator& op) {
        return find_in({{"**", Operator::kPower}}, op);
      });
}

// A sign binds closer than a filter behind it: -x|abs is (-x)|abs.
ExpressionPtr ExpressionParser::parse_unary(bool with_filter) {
  size_t offset = current().offset;
  ExpressionPtr expression;
  if (current().is_operator("-") || current().is_operator("+")) {
    auto sign = make_expression(current().is_operator("-") ? ExprKind::kNegate : ExprKind::kPositive, offset);
    ++at_;
    Level level(*this);
    sign->items.push_back(parse_unary(false));
    expression = std::move(sign);
  } else {
    expression = parse_primary();
  }
  std::vector<Step> steps;
  parse_postfix(steps);
  if (with_filter) parse_filters_and_tests(steps);
  return with_steps(std::move(expression), std::move(steps), offset);
}

ExpressionPtr ExpressionParser::with_steps(ExpressionPtr base, std::vector<Step> steps, size_t offset) const {
  if (steps.empty()) return base;
  auto expression = make_expression(ExprKind::kPostfix, offset);
  expression->items.push_back(std::move(base));
  expression->steps = std::move(steps);
  return expression;
}

ExpressionPtr ExpressionParser::parse_primary() {
  size_t offset = current().offset;
  auto constant = make_expression(ExprKind::kConstant, offset);
  switch (current().kind) {
    case TokenKind::kName: return parse_name();
    case TokenKind::kString: {
      std::string text;
      while (current().kind == TokenKind::kString) text += take().text;
      constant->value = Value(text);
      return constant;
    }
    case TokenKind::kInteger: constant->value = Value(take().integer); return constant;
    case TokenKind::kFloat: constant->value = Value(take().number); return constant;
    default: break;
  }
  if (skip_operator("(")) {
    ExpressionPtr inner = parse_tuple(true, "", true);
    expect_operator(")");
    return inner;
  }
  if (skip_operator("[")) {
    auto list = make_expression(ExprKind::kList, offset);
    while (!current().is_operator("]")) {
      list->items.push_back(parse_expression());
      if (!skip_operator(",")) break;
    }
    expect_operator("]");
    return list;
  }
  if (skip_operator("{")) {
    auto dict = make_expression(ExprKind::kDict, offset);
    while (!current().is_operator("}")) {
      dict->items.push_back(parse_expression());
      expect_operator(":");
      dict->items.push_back(parse_expression());
      if (!skip_operator(",")) break;
    }
    expect_operator("}");
    return dict;
  }
  fail("unexpected " + describe(current()), offset);
}

ExpressionPtr ExpressionParser::parse_name() {
  auto expression = make_expression(ExprKind::kConstant, current().offset);
  std::string name = take().text;
  if (name == "true" || name == "True" || name == "false" || name == "False") {
    expression->value = Value(name == "true" || name == "True");
  } else if (name != "none" && name != "None") {
    expression->kind = ExprKind::kName;
    expression->symbol = symbol_of(name);
    uses_loop_ |= expression->symbol == kLoopSymbol;
    for (MacroDefinition* macro : macros_) {
      macro->uses_caller |= expression->symbol == kCallerSymbol;
      macro->uses_varargs |= expression->symbol == kVarargsSymbol;
      macro->uses_kwargs |= expression->symbol == kKwargsSymbol;
    }
  }
  return expression;
}

Step ExpressionParser::make_step(Step::Kind kind) const {
  Step step;
  step.kind = kind;
  step.offset = current().offset;
  return step;
}

void ExpressionParser::parse_postfix(std::vector<Step>& steps) {
  while (true) {
    if (current().is_operator(".")) {
      Step step = make_step(Step::Kind::kAttribute);
      ++at_;
      if (current().kind == TokenKind::kInteger) {
        auto index = make_expression(ExprKind::kConstant, current().offset);
        index->value = Value(take().integer);
        step.kind = Step::Kind::kItem;
        step.index = std::move(index);
      } else {
        step.name = take_name();
      }
      steps.push_back(std::move(step));
    } else if (current().is_operator("[")) {
      steps.push_back(parse_subscript());
    } else if (current().is_operator("(")) {
      steps.push_back(parse_call());
    } else {
      return;
    }
  }
}

Step ExpressionParser::parse_subscript() {
  Step step = make_step(Step::Kind::kItem);
  ++at_;
  if (!current().is_operator(":")) {
    step.slice[0] = parse_expression();
    if (!current().is_operator(":")) {
      step.index = std::move(step.slice[0]);
      if (current().is_operator(",")) {
        auto tuple = make_expression(ExprKind::kTuple, step.offset);
        tuple->items.push_back(std::move(step.index));
        while (skip_operator(",")) tuple->items.push_back(parse_expression());
        step.index = std::move(tuple);
      }
      expect_operator("]");
      return step;
    }
  }
  step.kind = Step::Kind::kSlice;
  for (int part = 1; part < 3 && skip_operator(":"); ++part) {
    if (!current().is_operator(":") && !current().is_operator("]")) step.slice[part] = parse_expression();
  }
  expect_operator("]");
  return step;
}

Step ExpressionParser::parse_call() {
  Step step = make_step(Step::Kind::kCall);
  step.arguments = parse_arguments();
  return step;
}

Arguments ExpressionParser::parse_arguments() {
  Arguments arguments;
  expect_operator("(");
  while (!current().is_operator(")")) {
    size_t offset = current().offset;
    bool in_order = true;
    if (skip_operator("*")) {
      in_order = !arguments.star && !arguments.star_star;
      arguments.star = parse_expression();
    } else if (skip_operator("**")) {
      in_order = !arguments.star_star;
      arguments.star_star = parse_expression();
    } else if (current().kind == TokenKind::kName && look().is_operator("=")) {
      std::string name = take().text;
      ++at_;
      in_order = !arguments.star_star;
      for (const auto& [other, value] : arguments.keyword) {
        if (other == name) fail("keyword argument repeated: " + name, offset);
      }
      arguments.keyword.emplace_back(name, parse_expression());
    } else {
      in_order = !arguments.star && !arguments.star_star && arguments.keyword.empty();
      arguments.positional.push_back(parse_expression());
    }
    if (!in_order) fail("invalid syntax for function call expression", offset);
    if (!skip_operator(",")) break;
  }
  expect_operator(")");
  return arguments;
}

std::string ExpressionParser::parse_dotted_name() {
  std::string name = take_name();
  while (skip_operator(".")) name += "." + take_name();
  return name;
}

// Behind "|".
Step ExpressionParser::parse_filter() {
  Step step = make_step(Step::Kind::kFilter);
  step.name = parse_dotted_name();
  if (!find_filter(step.name)) note_unknown("No filter named '" + step.name + "'.", step.offset);
  if (current().is_operator("(")) step.arguments = parse_arguments();
  return step;
}

void ExpressionParser::note_unknown(std::string message, size_t offset) {
  if (!is_conditional_) unknown_names_.push_back({std::move(message), offset});
}

void ExpressionParser::parse_filters_and_tests(std::vector<Step>& steps) {
  while (true) {
    if (skip_operator("|")) {
      steps.push_back(parse_filter());
    } else if (current().is_name("is")) {
      steps.push_back(parse_test());
    } else if (current().is_operator("(")) {
      steps.push_back(parse_call());
    } else {
      return;
    }
  }
}

Step ExpressionParser::parse_test() {
  Step step = make_step(Step::Kind::kTest);
  ++at_;
  step.is_negated = skip_name("not");
  step.name = parse_dotted_name();
  if (!has_test(step.name)) note_unknown("No test named '" + step.name + "'.", step.offset);
  const Token& token = current();
  if (token.is_operator("(")) {
    step.arguments = parse_arguments();
  } else if ((token.kind == TokenKind::kName && !token.is_name("else") && !token.is_name("or") &&
              !token.is_name("and")) ||
             token.kind == TokenKind::kString || token.kind == TokenKind::kInteger ||
             token.kind == TokenKind::kFloat || token.is_operator("[") || token.is_operator("{")) {
    if (token.is_name("is")) fail("you cannot chain multiple tests with is", token.offset);
    size_t offset = token.offset;
    ExpressionPtr argument = parse_primary();
    std::vector<Step> steps;
    parse_postfix(steps);
    step.arguments.positional.push_back(with_steps(std::move(argument), std::move(steps), offset));
  }
  return step;
}

}  // namespace restkv::chat
