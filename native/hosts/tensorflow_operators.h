// The operations that TensorFlow knows us by: a norm, and its backward.
#pragma once

namespace layernorm::tensorflow {

// Once a process, after load_shim(). The reason why TensorFlow refused, or null.
const char* define_operators();

// TensorFlow's own bound on the threads within one operation; 0 for none.
void bound_threads(int most);

}  // namespace layernorm::tensorflow
