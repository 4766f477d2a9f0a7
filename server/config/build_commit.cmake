# The commit that `restkv version` names, as of the build and not of the last configure. Included: a target that looks at each
# build. As a script (cmake -DSOURCE=DIR -DOUT=FILE -P): writes the source file, but only if it would say something else.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  set(RESTKV_BUILD_COMMIT ${CMAKE_CURRENT_BINARY_DIR}/build_commit.cpp)
  add_custom_target(restkv_build_commit BYPRODUCTS ${RESTKV_BUILD_COMMIT} VERBATIM
    COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DOUT=${RESTKV_BUILD_COMMIT} -P ${CMAKE_CURRENT_LIST_FILE})
  return()
endif()

# "+" after the commit: the tree had changes of its own.
set(commit "unknown")
find_program(GIT git)
# A tree without .git is no part of the repository that it may lie in.
if(GIT AND EXISTS ${SOURCE}/.git)
  execute_process(COMMAND ${GIT} describe --always --dirty=+ --exclude=* --abbrev=7
    WORKING_DIRECTORY ${SOURCE} OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(described)
    set(commit "${described}")
  endif()
endif()
file(CONFIGURE OUTPUT ${OUT} @ONLY CONTENT [[
// From server/config/build_commit.cmake.
#include "server/config/build_info.h"

namespace restkv {

std::string_view build_commit() { return "@commit@"; }

}  // namespace restkv
]])
