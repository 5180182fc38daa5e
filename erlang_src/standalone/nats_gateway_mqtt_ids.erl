%% Identifiers of MQTT packets and subscriptions. They go from 1 to the largest one, and then start
%% again.
-module(nats_gateway_mqtt_ids).

-export([free/3]).
-export([following/2]).

%% The first identifier from `Id' on that is not taken. At least one must be free.
-spec free(Id, Taken :: #{Id => term()}, Max :: Id) -> Id when Id :: pos_integer().
free(Id, Taken, Max) when is_map_key(Id, Taken) -> free(following(Id, Max), Taken, Max);
free(Id, _, _) -> Id.

-spec following(Id, Max :: Id) -> Id when Id :: pos_integer().
following(Max, Max) -> 1;
following(Id, _) -> Id + 1.
