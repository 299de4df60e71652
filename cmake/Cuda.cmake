# The CUDA backend: the cuda/ folders of the rooms as libmillrace_cuda.so beside the program. Built
# with an installed toolkit, or with the compiler and libraries of NVIDIA's wheels
# (scripts/install_cuda.sh brings them to .cuda/, pinned).
#
#   -DMILLRACE_CUDA=auto|on|off   auto: when a CUDA compiler is found
#   -DMILLRACE_CUDA_ARCHITECTURES=90a-real   fewer architectures build faster

set(MILLRACE_CUDA auto CACHE STRING "Build the CUDA backend: auto, on or off")
set(MILLRACE_CUDA_ARCHITECTURES "80-real;89-real;90a-real;90-virtual" CACHE STRING
  "Architectures of the CUDA backend")
set(cuda_wheels ${CMAKE_SOURCE_DIR}/.cuda/nvidia)
find_program(MILLRACE_NVCC nvcc HINTS ${cuda_wheels}/cu13/bin /usr/local/cuda/bin)
if(MILLRACE_CUDA STREQUAL off OR (MILLRACE_CUDA STREQUAL auto AND NOT MILLRACE_NVCC))
  message(STATUS "CUDA backend: not built")
  return()
elseif(NOT MILLRACE_NVCC)
  message(FATAL_ERROR "No nvcc was found: run scripts/install_cuda.sh, or use -DMILLRACE_CUDA=off")
endif()

set(CMAKE_CUDA_COMPILER ${MILLRACE_NVCC})
set(CMAKE_CUDA_ARCHITECTURES ${MILLRACE_CUDA_ARCHITECTURES})
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
# The wheels have no lib64 and no stubs of the driver, which nothing here links.
get_filename_component(cuda_root ${MILLRACE_NVCC} DIRECTORY)
get_filename_component(cuda_root ${cuda_root} DIRECTORY)
set(ENV{LIBRARY_PATH} "${cuda_root}/lib:$ENV{LIBRARY_PATH}")
enable_language(CUDA)
# CMake 3.25 does not know that this compiler speaks C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
set(cuda_places ${cuda_root}/lib ${cuda_root}/lib64 ${cuda_wheels}/nccl/lib)
find_library(MILLRACE_CUBLASLT NAMES cublasLt libcublasLt.so.13 HINTS ${cuda_places} REQUIRED)
find_library(MILLRACE_NCCL NAMES nccl libnccl.so.2 HINTS ${cuda_places} REQUIRED)
find_path(MILLRACE_NCCL_INCLUDE nccl.h HINTS ${cuda_wheels}/nccl/include REQUIRED)

file(GLOB cuda_sources CONFIGURE_DEPENDS
  engine/core/cuda/*.c* engine/kernels/cuda/*.c* comm/cuda/*.c* engine/worker/cuda/*.c*)
list(FILTER cuda_sources INCLUDE REGEX "\\.(cc|cu)$")
add_library(millrace_cuda_objects OBJECT ${cuda_sources})
target_link_libraries(millrace_cuda_objects PUBLIC millrace_options millrace_base millrace_core
  millrace_protocol)
target_include_directories(millrace_cuda_objects SYSTEM PUBLIC
  ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} ${MILLRACE_NCCL_INCLUDE})
target_compile_options(millrace_cuda_objects PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:
  --expt-relaxed-constexpr -lineinfo -Xcompiler=-Wall,-Wextra>)
# nvcc's front end cannot follow fmt 9's compile-time checks.
target_compile_definitions(millrace_cuda_objects PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1> "$<$<COMPILE_LANGUAGE:CUDA>:FMT_CONSTEVAL=>")
if(MILLRACE_CUDA_ARCHITECTURES MATCHES "90a")
  target_compile_definitions(millrace_cuda_objects PRIVATE MILLRACE_SM90A)
endif()
target_link_libraries(millrace_cuda_objects PUBLIC ${MILLRACE_CUBLASLT} ${MILLRACE_NCCL})

add_library(millrace_cuda SHARED $<TARGET_OBJECTS:millrace_cuda_objects>)
target_link_libraries(millrace_cuda PRIVATE millrace_cuda_objects millrace_comm)
target_link_options(millrace_cuda PRIVATE -Wl,--as-needed,--exclude-libs,ALL,-z,defs)
set_target_properties(millrace_cuda PROPERTIES
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} CUDA_RESOLVE_DEVICE_SYMBOLS OFF)
set(MILLRACE_CUDA_ENABLED ON)
message(STATUS "CUDA backend: ${MILLRACE_NVCC}, ${MILLRACE_CUDA_ARCHITECTURES}")
