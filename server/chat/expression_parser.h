// The half of the parser that reads expressions, and the token stream below both halves: Jinja2's precedences or, and,
// not, comparison, + -, ~, * / // %, **, unary, then attributes, items, calls, filters and tests.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "server/chat/ast.h"
#include "server/chat/lexer.h"

namespace restkv::chat {

class ExpressionParser {
 protected:
  explicit ExpressionParser(std::string_view source);

  // Counts one level for as long as it lives.
  class Level {
   public:
    explicit Level(ExpressionParser& parser) : parser_(parser) { parser.enter(); }
    ~Level() { --parser_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    ExpressionParser& parser_;
  };
  void enter();
  [[noreturn]] static void fail(const std::string& message, size_t offset);
  const Token& current() const;
  const Token& look() const;
  const Token& take();
  bool skip_operator(std::string_view op);
  bool skip_name(std::string_view name);
  static std::string describe(const Token& token);
  void expect_operator(std::string_view op);
  void expect_name(std::string_view name);
  void expect_kind(TokenKind kind, const char* what);
  std::string take_name();
  int symbol_of(const std::string& name);
  // One expression, or a tuple without brackets. `end`: a name that may end it.
  ExpressionPtr parse_tuple(bool with_condition = true, std::string_view end = "", bool may_be_empty = false);
  ExpressionPtr parse_expression(bool with_condition = true);
  // Behind "|".
  Step parse_filter();

  // A filter or test that does not exist fails the whole template, as in Jinja2, but for those below a condition: they
  // fail where they run.
  struct UnknownName {
    std::string message;
    size_t offset;
  };

  std::vector<MacroDefinition*> macros_;  // around the current token
  bool is_conditional_ = false;  // the current token is directly in an if block, or in what its head says
  std::vector<UnknownName> unknown_names_;
  bool uses_loop_ = false;  // since the body of the innermost loop began
  std::vector<std::string> symbols_;
  size_t at_ = 0;

 private:
  std::unique_ptr<Expression> make_expression(Expression::Kind kind, size_t offset) const;
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_concat();
  template <class ParseItem, class SkipSeparator>
  ExpressionPtr parse_list_of(Expression::Kind kind, ParseItem parse_item, SkipSeparator skip_separator);
  ExpressionPtr parse_not();
  // items[0] op items[1] op ... `find_operator` gives the operator under the current token and skips it.
  template <class ParseItem, class FindOperator>
  ExpressionPtr parse_chain(Expression::Kind kind, ParseItem parse_item, FindOperator find_operator);
  bool find_in(std::initializer_list<std::pair<std::string_view, Operator>> table, Operator& op);
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sums();
  ExpressionPtr parse_products();
  ExpressionPtr parse_powers();
  // A sign binds closer than a filter behind it: -x|abs is (-x)|abs.
  ExpressionPtr parse_unary(bool with_filter = true);
  ExpressionPtr with_steps(ExpressionPtr base, std::vector<Step> steps, size_t offset) const;
  ExpressionPtr parse_primary();
  ExpressionPtr parse_name();
  Step make_step(Step::Kind kind) const;
  void parse_postfix(std::vector<Step>& steps);
  Step parse_subscript();
  Step parse_call();
  Arguments parse_arguments();
  std::string parse_dotted_name();
  void parse_filters_and_tests(std::vector<Step>& steps);
  Step parse_test();
  void note_unknown(std::string message, size_t offset);

  std::vector<Token> tokens_;
  int depth_ = 0;
  std::unordered_map<std::string, int> numbers_;  // of the symbols
};

}  // namespace restkv::chat
