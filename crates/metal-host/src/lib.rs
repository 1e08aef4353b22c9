//! Compiles Metal Shading Language as C++ and runs whole dispatches on a CPU.
