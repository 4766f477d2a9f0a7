#include "server/chat/parser.h"

#include <initializer_list>

#include "server/chat/expression_parser.h"

namespace restkv::chat {
namespace {

using ExprKind = Expression::Kind;
using StmtKind = Statement::Kind;
using Names = std::initializer_list<std::string_view>;

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(source) {}

  TemplateTree run() {
    Body body = parse_until({});
    if (!unknown_names_.empty()) fail(unknown_names_[0].message, unknown_names_[0].offset);
    return {std::move(body), std::move(symbols_)};
  }

 private:
  // Text, output and blocks until one of the block names `ends`, which is left as the current token; none: to the end.
  Body parse_until(Names ends) {
    Level level(*this);
    Body body;
    while (true) {
      const Token& token = current();
      if (token.kind == TokenKind::kData) {
        auto statement = make_statement(StmtKind::kData);
        statement->data = take().text;
        body.push_back(std::move(statement));
      } else if (token.kind == TokenKind::kVariableBegin) {
        auto statement = make_statement(StmtKind::kOutput);
        ++at_;
        statement->expressions.push_back(parse_tuple());
        expect_kind(TokenKind::kVariableEnd, "'}}'");
        body.push_back(std::move(statement));
      } else if (token.kind == TokenKind::kBlockBegin) {
        ++at_;
        if (current().kind != TokenKind::kName) fail("tag name expected", current().offset);
        for (std::string_view end : ends) {
          if (current().is_name(end)) return body;
        }
        body.push_back(parse_statement());
        expect_kind(TokenKind::kBlockEnd, "'%}'");
      } else {
        if (ends.size() != 0)
          fail("unexpected end of template, expected '" + std::string(*(ends.end() - 1)) + "'", token.offset);
        return body;
      }
    }
  }

  // Behind the head of a block: its body; `ends` as in parse_until.
  Body parse_body(Names ends) {
    skip_operator(":");
    expect_kind(TokenKind::kBlockEnd, "'%}'");
    return parse_until(ends);
  }
  Body parse_last_body(std::string_view end) {
    Body body = parse_body({end});
    ++at_;
    return body;
  }

  // The body of a block with a scope of its own: a condition around it no longer counts.
  Body parse_scope(Names ends) {
    bool outer = std::exchange(is_conditional_, false);
    Body body = parse_body(ends);
    is_conditional_ = outer;
    return body;
  }
  Body parse_last_scope(std::string_view end) {
    Body body = parse_scope({end});
    ++at_;
    return body;
  }
  // A filter of a filter or set block, which runs in the block's scope.
  Step parse_filter_of_scope() {
    bool outer = std::exchange(is_conditional_, false);
    Step filter = parse_filter();
    is_conditional_ = outer;
    return filter;
  }

  std::unique_ptr<Statement> make_statement(StmtKind kind) const {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->offset = current().offset;
    return statement;
  }

  std::unique_ptr<const Statement> parse_statement() {
    const std::string tag = current().text;
    if (tag == "if") return parse_if();
    if (tag == "for") return parse_for();
    if (tag == "set") return parse_set();
    if (tag == "macro") return parse_macro();
    if (tag == "call") return parse_call_block();
    if (tag == "break" || tag == "continue") {
      if (loop_depth_ == 0) fail("'" + tag + "' outside of a loop", current().offset);
      auto statement = make_statement(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue);
      ++at_;
      return statement;
    }
    if (tag == "print") {
      auto statement = make_statement(StmtKind::kOutput);
      ++at_;
      while (current().kind != TokenKind::kBlockEnd) {
        if (!statement->expressions.empty()) expect_operator(",");
        statement->expressions.push_back(parse_expression());
      }
      return statement;
    }
    if (tag == "filter") {
      auto statement = make_statement(StmtKind::kFilterBlock);
      ++at_;
      statement->filters.push_back(parse_filter_of_scope());
      while (skip_operator("|")) statement->filters.push_back(parse_filter_of_scope());
      statement->bodies.push_back(parse_last_scope("endfilter"));
      return statement;
    }
    if (tag == "with") return parse_with();
    if (tag == "generation" || tag == "block") {
      auto statement = make_statement(StmtKind::kScope);
      ++at_;
      std::string name = tag == "block" ? take_name() : "";
      if (tag == "block") skip_name("scoped");
      statement->bodies.push_back(parse_last_scope("end" + tag));
      if (tag == "block") skip_name(name);
      return statement;
    }
    for (std::string_view other : {"include", "import", "from", "extends"}) {
      if (tag == other) fail("'" + tag + "' is not available: a chat template is one file", current().offset);
    }
    fail("unknown tag '" + tag + "'", current().offset);
  }

  std::unique_ptr<const Statement> parse_if() {
    auto statement = make_statement(StmtKind::kIf);
    bool outer = std::exchange(is_conditional_, true);
    while (true) {
      ++at_;  // if, elif
      statement->expressions.push_back(parse_tuple(false));
      statement->bodies.push_back(parse_body({"elif", "else", "endif"}));
      if (current().is_name("elif")) continue;
      if (skip_name("else")) {
        statement->bodies.push_back(parse_last_body("endif"));
      } else {
        ++at_;
      }
      is_conditional_ = outer;
      return statement;
    }
  }

  std::unique_ptr<const Statement> parse_for() {
    auto statement = make_statement(StmtKind::kFor);
    ++at_;
    auto loop = std::make_unique<ForStatement>();
    ++for_depth_;
    loop->target = parse_target(false, "in");
    expect_name("in");
    loop->iterable = parse_tuple(false, "recursive");
    bool outer_condition = std::exchange(is_conditional_, false);
    if (skip_name("if")) loop->filter = parse_expression();
    loop->is_recursive = skip_name("recursive");
    bool outer_uses_loop = std::exchange(uses_loop_, false);
    ++loop_depth_;
    loop->body = parse_body({"else", "endfor"});
    --loop_depth_;
    loop->uses_loop = uses_loop_ || loop->is_recursive;
    uses_loop_ |= outer_uses_loop;
    if (skip_name("else")) {
      loop->otherwise = parse_last_body("endfor");
    } else {
      ++at_;
    }
    is_conditional_ = outer_condition;
    --for_depth_;
    statement->loop = std::move(loop);
    return statement;
  }

  std::unique_ptr<const Statement> parse_set() {
    auto statement = make_statement(StmtKind::kSet);
    ++at_;
    statement->targets.push_back(parse_target(true, ""));
    if (skip_operator("=")) {
      statement->expressions.push_back(parse_tuple());
      return statement;
    }
    statement->kind = StmtKind::kSetBlock;
    while (skip_operator("|")) statement->filters.push_back(parse_filter_of_scope());
    statement->bodies.push_back(parse_last_scope("endset"));
    return statement;
  }

  std::unique_ptr<const Statement> parse_with() {
    auto statement = make_statement(StmtKind::kWith);
    ++at_;
    while (current().kind != TokenKind::kBlockEnd) {
      if (!statement->targets.empty()) expect_operator(",");
      statement->targets.push_back(parse_target(false, ""));
      expect_operator("=");
      statement->expressions.push_back(parse_expression());
    }
    statement->bodies.push_back(parse_last_scope("endwith"));
    return statement;
  }

  void parse_signature(MacroDefinition& macro) {
    expect_operator("(");
    while (!current().is_operator(")")) {
      if (!macro.parameters.empty()) expect_operator(",");
      size_t offset = current().offset;
      std::string name = take_name();
      if (skip_operator("=")) {
        macro.defaults.push_back(parse_expression());
      } else if (!macro.defaults.empty()) {
        fail("non-default argument follows default argument", offset);
      }
      for (const auto& [symbol, other] : macro.parameters) {
        if (other == name) fail("duplicate argument '" + name + "'", offset);
      }
      macro.parameters.emplace_back(symbol_of(name), name);
    }
    expect_operator(")");
  }

  // A macro's body stands alone: no break into a loop around it.
  void parse_macro_body(MacroDefinition& macro, std::string_view end) {
    size_t offset = current().offset;
    macros_.push_back(&macro);
    int outer_loops = std::exchange(loop_depth_, 0);
    macro.body = parse_last_scope(end);
    loop_depth_ = outer_loops;
    macros_.pop_back();
    size_t num_required = macro.parameters.size() - macro.defaults.size();
    for (size_t i = 0; i < num_required && macro.uses_caller; ++i) {
      if (macro.parameters[i].first == kCallerSymbol)
        fail("the special argument 'caller' must be omitted or have a default", offset);
    }
  }

  std::unique_ptr<const Statement> parse_macro() {
    auto statement = make_statement(StmtKind::kMacro);
    ++at_;
    auto macro = std::make_unique<MacroDefinition>();
    macro->name = take_name();
    statement->symbol = symbol_of(macro->name);
    macros_.push_back(macro.get());
    parse_signature(*macro);
    macros_.pop_back();
    parse_macro_body(*macro, "endmacro");
    statement->macro = std::move(macro);
    return statement;
  }

  std::unique_ptr<const Statement> parse_call_block() {
    auto statement = make_statement(StmtKind::kCallBlock);
    ++at_;
    auto macro = std::make_unique<MacroDefinition>();
    macro->name = "caller";
    if (current().is_operator("(")) parse_signature(*macro);
    size_t offset = current().offset;
    ExpressionPtr call = parse_expression();
    if (call->kind != ExprKind::kPostfix || call->steps.back().kind != Step::Kind::kCall)
      fail("expected call", offset);
    statement->expressions.push_back(std::move(call));
    parse_macro_body(*macro, "endcall");
    statement->macro = std::move(macro);
    return statement;
  }

  // Targets of set, for and with: a name, a tuple of targets, and for set namespace.attribute. `end`: the name behind.
  Target parse_target(bool with_namespace, std::string_view end) {
    Target first = parse_single_target(with_namespace);
    if (!current().is_operator(",")) return first;
    Target tuple;
    tuple.offset = first.offset;
    tuple.is_tuple = true;
    tuple.items.push_back(std::move(first));
    while (skip_operator(",")) {
      if (current().kind == TokenKind::kBlockEnd || current().is_operator("=") ||
          current().is_operator(")") || (!end.empty() && current().is_name(end))) {
        break;
      }
      tuple.items.push_back(parse_single_target(with_namespace));
    }
    return tuple;
  }

  Target parse_single_target(bool with_namespace) {
    Level level(*this);
    Target target;
    target.offset = current().offset;
    if (skip_operator("(")) {
      target = parse_target(with_namespace, "");
      expect_operator(")");
      return target;
    }
    std::string name = take_name();
    for (std::string_view fixed : {"true", "false", "none", "True", "False", "None"}) {
      if (name == fixed) fail("can't assign to '" + name + "'", target.offset);
    }
    target.symbol = symbol_of(name);
    if (target.symbol == kLoopSymbol && for_depth_ > 0)
      fail("can't assign to special loop variable in a for loop", target.offset);
    if (with_namespace && skip_operator(".")) target.attribute = take_name();
    return target;
  }

  int loop_depth_ = 0;  // loops that break would end; a macro begins anew
  int for_depth_ = 0;   // loops around the current token
};

}  // namespace

TemplateTree parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace restkv::chat
