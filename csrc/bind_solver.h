// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#pragma once

#include <nanobind/nanobind.h>

namespace gemma_surgery::python {

void bind_solver(nanobind::module_& m);

}  // namespace gemma_surgery::python
