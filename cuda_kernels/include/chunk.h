#pragma once

constexpr int CHUNK = 16;      // steps between two saved states where the backward recomputes
