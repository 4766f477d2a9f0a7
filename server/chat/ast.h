// The parsed template. Chains that Python programs write long (a + b + c, a ~ b, x.y.z|f|g, elif) are flat lists, so that
// the depth of the tree, and with it every recursion over it, is the depth of nesting that the parser bounds.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/chat/value.h"

namespace restkv::chat {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<const Expression>;
using Body = std::vector<std::unique_ptr<const Statement>>;

struct Arguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> keyword;
  ExpressionPtr star, star_star;  // *args, **kwargs; may be null
};

struct Step {
  enum class Kind : uint8_t { kAttribute, kItem, kSlice, kCall, kFilter, kTest };
  Kind kind;
  size_t offset;
  std::string name;         // attribute, filter, test
  Arguments arguments;      // call, filter, test
  ExpressionPtr index;      // item
  ExpressionPtr slice[3];   // start, stop, step; may be null
  bool is_negated = false;  // "is not"
};

enum class Operator : uint8_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct Expression {
  enum class Kind : uint8_t {
    kConstant,    // value
    kName,        // symbol
    kTuple,       // items
    kList,        // items
    kDict,        // items: key, value, key, value...
    kConcat,      // items, joined as strings
    kAnd,         // items
    kOr,          // items
    kNot,         // items[0]
    kNegate,      // items[0]
    kPositive,    // items[0]
    kArithmetic,  // items[0] operators[0] items[1] operators[1] ... from the left
    kCompare,     // the same, as a chain of comparisons
    kCondition,   // items: test, value if true, value if false or null
    kPostfix,     // items[0], then steps
  };
  Kind kind;
  size_t offset;
  Value value;
  int symbol = -1;
  std::vector<ExpressionPtr> items;
  std::vector<Operator> operators;       // [items.size() - 1]
  std::vector<size_t> operator_offsets;  // the same
  std::vector<Step> steps;
};

struct Target {
  size_t offset = 0;
  int symbol = -1;            // of the name, or of the namespace
  std::string attribute;      // not empty: symbol.attribute
  std::vector<Target> items;  // not empty: a tuple
  bool is_tuple = false;
};

struct MacroDefinition {
  std::string name;
  std::vector<std::pair<int, std::string>> parameters;  // symbol, name
  std::vector<ExpressionPtr> defaults;                  // of the last parameters
  Body body;
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
};

struct ForStatement {
  Target target;
  ExpressionPtr iterable;
  ExpressionPtr filter;  // may be null
  bool is_recursive = false;
  bool uses_loop = false;  // the body names `loop`, or it is recursive
  Body body, otherwise;
};

struct Statement {
  enum class Kind : uint8_t {
    kData,
    kOutput,
    kFor,
    kIf,
    kSet,
    kSetBlock,
    kMacro,
    kCallBlock,
    kFilterBlock,
    kWith,
    kScope,
    kBreak,
    kContinue,
  };
  Kind kind;
  size_t offset;
  std::string data;
  std::vector<ExpressionPtr>
      expressions;              // output; the tests of if and elif; values of with; value of set; call
  std::vector<Body> bodies;     // of if: one a test, and one more for else; otherwise at most one
  std::vector<Target> targets;  // set, with
  std::vector<Step> filters;    // of set and filter blocks
  std::unique_ptr<const ForStatement> loop;
  std::unique_ptr<const MacroDefinition> macro;  // macro and call blocks
  int symbol = -1;                               // of the macro's name
};

// Names are numbered while parsing, so that a running template compares integers.
struct TemplateTree {
  Body body;
  std::vector<std::string> symbols;
};

// Numbers that every template has.
enum FixedSymbol : int { kLoopSymbol, kCallerSymbol, kVarargsSymbol, kKwargsSymbol, kNumFixedSymbols };

}  // namespace restkv::chat
