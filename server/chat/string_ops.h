// The algorithms of Python's str that methods and filters share, on text with its origin.
#pragma once

#include <string_view>
#include <vector>

#include "server/chat/context.h"
#include "server/chat/text.h"
#include "server/chat/unicode_classes.h"

namespace restkv::chat {

enum class Side { kLeft, kRight, kBoth };

// `chars`: none for white space, or a string whose characters go.
Text strip_text(Context& context, const Text& text, const Value& chars, Side side);
Text map_case(Context& context, const Text& text, Case target);
Text capitalize_text(Context& context, const Text& text);
Text title_text(Context& context, const Text& text);  // str.title
Text swap_case(Context& context, const Text& text);
// count < 0: all.
Text replace_text(Context& context, const Text& text, const Text& old_part, const Text& new_part,
                  int64_t count);
// By white space if `separator` is null; at most `max_splits` cuts unless it is negative.
std::vector<Text> split_text(Context& context, const Text& text, const Text* separator, int64_t max_splits);
std::vector<Text> split_text_from_right(Context& context, const Text& text, const Text* separator,
                                        int64_t max_splits);
std::vector<Text> split_lines(Context& context, const Text& text, bool keep_ends);
// Fills to `width` code points.
Text pad_text(Context& context, const Value& string, int64_t width, const Text& fill, Side text_side);
Text join_texts(Context& context, const Text& separator, const std::vector<Text>& parts);

}  // namespace restkv::chat
