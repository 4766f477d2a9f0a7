# CPack installs below one prefix, /usr; a package's settings lie in /etc.
foreach(folder ${CPACK_TEMPORARY_INSTALL_DIRECTORY} ${CPACK_TEMPORARY_DIRECTORY})
  if(IS_DIRECTORY ${folder}/usr/etc)
    file(RENAME ${folder}/usr/etc ${folder}/etc)
  endif()
endforeach()
