"""From a public function inwards: `jit`, the computing dtype, weights and reduction."""
