#pragma once
#include "entry.h"
#include "compiler.h"
