// What all connections of an HTTP server share, beside what it shares with other servers of the process.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "server/http/body_room.h"
#include "server/http/limits.h"
#include "server/serving/serving.h"

namespace restkv {

struct ServerState {
  explicit ServerState(std::shared_ptr<Serving> shared)
      : serving(std::move(shared)),
        settings(serving->settings),
        model(serving->model),
        limits(http_limits(settings.server, model.engine->memory_plan().max_model_len)),
        body_room(limits.bodies) {}

  std::string new_id(std::string_view prefix) { return serving->new_id(prefix); }

  const std::shared_ptr<Serving> serving;
  const Settings& settings;
  const ServedModel& model;
  const HttpLimits limits;
  BodyRoom body_room;
  std::atomic<int64_t> num_connections{0};
  // Requests between their last byte and the end of their answer; those that are refused, until their connection is closed.
  std::atomic<int64_t> num_active{0};
  std::once_flag openapi_once;
  std::string openapi;  // of /openapi.json, when it was asked for once
};

}  // namespace restkv
