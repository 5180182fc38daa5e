-module(nats_gateway_mqtt_ids_tests).

-include_lib("eunit/include/eunit.hrl").

-define(MAX, 65535).

following_test_() ->
    [
        ?_assertEqual(Next, nats_gateway_mqtt_ids:following(Id, ?MAX))
     || {Id, Next} <- [{1, 2}, {?MAX - 1, ?MAX}, {?MAX, 1}]
    ].

free_test_() ->
    [
        ?_assertEqual(Free, nats_gateway_mqtt_ids:free(Id, maps:from_keys(Taken, []), ?MAX))
     || {Id, Taken, Free} <- [
            {1, [], 1},
            {1, [1, 2, 4], 3},
            {?MAX, [], ?MAX},
            {?MAX, [?MAX], 1},
            {?MAX - 1, [?MAX - 1, ?MAX, 1], 2}
        ]
    ].
