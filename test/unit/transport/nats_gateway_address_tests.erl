-module(nats_gateway_address_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_address, [format/1]).

format_test() ->
    ?assertEqual("4222", format(4222)),
    ?assertEqual("127.0.0.1:4222", format({{127, 0, 0, 1}, 4222})),
    ?assertEqual("[::1]:4222", format({{0, 0, 0, 0, 0, 0, 0, 1}, 4222})),
    ?assertEqual("broker.example:1883", format({"broker.example", 1883})),
    ?assertEqual("[::1]:1883", format({"::1", 1883})).
