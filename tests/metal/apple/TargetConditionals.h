// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Stands in for an Apple SDK header where eval_gpu is type-checked on other systems.

#pragma once

#define TARGET_OS_OSX 1
#define TARGET_OS_IPHONE 0
#define TARGET_OS_SIMULATOR 0
#define TARGET_OS_MACCATALYST 0
