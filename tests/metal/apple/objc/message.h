// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Stands in for an Apple SDK header where eval_gpu is type-checked on other systems.

#pragma once

#include <objc/runtime.h>

extern "C" {
void objc_msgSend(void);
void objc_msgSend_fpret(void);
void objc_msgSend_stret(void);
}
