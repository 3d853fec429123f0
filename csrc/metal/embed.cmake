# Writes the Metal sources of FOLDER into the C++ file OUTPUT, so that they travel in the
# extension and are compiled at run time: cmake -DFOLDER=csrc/metal -DOUTPUT=x.cpp -P embed.cmake
file(GLOB _files "${FOLDER}/*.h" "${FOLDER}/*.metal")
list(SORT _files)
set(_text "// Generated from csrc/metal by embed.cmake.\n\n")
string(APPEND _text "#include \"primitives/metal_source.h\"\n\n")
string(APPEND _text "namespace gemma_surgery::ops {\n\nconst MetalFile kMetalFiles[] = {\n")
foreach(_file IN LISTS _files)
  get_filename_component(_name "${_file}" NAME)
  file(READ "${_file}" _source)
  string(APPEND _text "    {\"${_name}\", R\"msl(${_source})msl\"},\n")
endforeach()
string(APPEND _text "    {nullptr, nullptr},\n};\n\n}  // namespace gemma_surgery::ops\n")
file(WRITE "${OUTPUT}" "${_text}")
