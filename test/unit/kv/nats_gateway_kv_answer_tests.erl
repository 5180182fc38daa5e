-module(nats_gateway_kv_answer_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_kv_answer, [encode/1, block/1, pairs/1, frame_headers/2, control/2]).

decoded(Answer) ->
    {undefined, Json} = encode(Answer),
    {ok, Map} = nats_gateway_nif:json_decode(Json),
    Map.

bucket() -> nats_gateway_kv_bucket:new(<<"b">>, <<"x/">>, <<>>).

value(Headers) -> #{revision => 7, at => 1500, headers => Headers, payload => <<"v">>}.

%% As a nats-server has answered the same requests.
errors_test_() ->
    [
        ?_assertEqual(
            #{
                <<"error">> => #{
                    <<"code">> => 400, <<"err_code">> => 10071, <<"description">> => <<"wrong last sequence: 3">>
                },
                <<"stream">> => <<"KV_b">>,
                <<"seq">> => 0
            },
            decoded({error, {publish, <<"KV_b">>}, {wrong_last, 3}})
        ),
        ?_assertEqual(
            #{
                <<"type">> => <<"io.nats.jetstream.api.v1.stream_info_response">>,
                <<"error">> => #{
                    <<"code">> => 404, <<"err_code">> => 10059, <<"description">> => <<"stream not found">>
                },
                <<"total">> => 0,
                <<"offset">> => 0,
                <<"limit">> => 0
            },
            decoded({error, <<"stream_info">>, stream_not_found})
        ),
        ?_assertEqual(
            {<<"NATS/1.0 404 Message Not Found\r\n\r\n">>, <<>>}, encode({error, direct, message_not_found})
        ),
        ?_assertEqual({<<"NATS/1.0 400 Bad Request\r\n\r\n">>, <<>>}, encode({error, direct, bad_request}))
    ].

%% The text goes into a header line.
texts_hold_no_line_ends_test_() ->
    [
        fun() ->
            #{<<"error">> := #{<<"description">> := Text}} = decoded({error, <<"x">>, F}),
            ?assertEqual(nomatch, binary:match(Text, [<<"\r">>, <<"\n">>]))
        end
     || F <- [
            bad_request, invalid_json, not_implemented, stream_not_found, consumer_not_found, message_not_found,
            other_configuration, other_stream, no_rollup, invalid_ttl, push_only, too_many_requests,
            too_many_consumers, {wrong_last, 1}, {failed, <<"t">>}, {denied, publish, <<"t">>},
            {denied, subscribe, <<"t">>}, {not_allowed, stream_create}, {not_allowed, stream_delete},
            {not_allowed, message_delete}, {not_allowed, purge}, {no_filter, <<"s">>}, {consumer_option, <<"o">>}
        ]
    ].

values_test_() ->
    More = <<
        "Nats-Stream: KV_b\r\nNats-Subject: $KV.b.k\r\nNats-Sequence: 7\r\n"
        "Nats-Time-Stamp: 1970-01-01T00:00:01.500Z\r\n\r\n"
    >>,
    Get = fun(Headers) -> encode({value, direct, bucket(), <<"k">>, value(Headers)}) end,
    [
        ?_assertEqual({<<"NATS/1.0\r\n", More/binary>>, <<"v">>}, Get(undefined)),
        ?_assertEqual({<<"NATS/1.0\r\nA: 1\r\n", More/binary>>, <<"v">>}, Get(<<"NATS/1.0\r\nA: 1\r\n\r\n">>)),
        ?_assertMatch(
            {{properties, [{<<"A">>, <<"1">>}, {<<"Nats-Stream">>, <<"KV_b">>} | _], <<"text">>}, <<"v">>},
            Get({properties, [{<<"A">>, <<"1">>}], <<"text">>})
        ),
        ?_assertMatch(
            #{
                <<"message">> := #{
                    <<"hdrs">> := _,
                    <<"data">> := <<"dg==">>,
                    <<"seq">> := 7,
                    <<"time">> := <<"1970-01-01T00:00:01.500Z">>
                }
            },
            decoded({value, message, bucket(), <<"k">>, value({properties, [{<<"A">>, <<"1">>}], undefined})})
        ),
        fun() ->
            #{<<"message">> := Message} = decoded({value, message, bucket(), <<"k">>, value(undefined)}),
            ?assertNot(is_map_key(<<"hdrs">>, Message))
        end
    ].

headers_test_() ->
    [
        ?_assertEqual(undefined, frame_headers(undefined, [])),
        ?_assertEqual(<<"NATS/1.0\r\nA: 1\r\n\r\n">>, frame_headers(undefined, [{<<"A">>, <<"1">>}])),
        ?_assertEqual([{<<"A">>, <<"1">>}], pairs(<<"NATS/1.0\r\nA: 1\r\n\r\n">>)),
        ?_assertEqual(
            [{<<"A">>, <<"1">>}, {<<"Content-Type">>, <<"t">>}],
            pairs({properties, [{<<"A">>, <<"1">>}], <<"t">>})
        ),
        ?_assertEqual(<<"NATS/1.0\r\n\r\n">>, block([])),
        ?_assertEqual(<<"NATS/1.0 100 FlowControl Request\r\n\r\n">>, control(flow_control, [])),
        ?_assertEqual(<<"NATS/1.0 100 Idle Heartbeat\r\nA: 1\r\n\r\n">>, control(heartbeat, [{<<"A">>, <<"1">>}]))
    ].

pages_test_() ->
    Names = [integer_to_binary(N) || N <- lists:seq(1, 1025)],
    Count = fun(Offset) -> length(maps:get(<<"streams">>, decoded({stream_names, Names, Offset}))) end,
    [?_assertEqual(Left, Count(Offset)) || {Offset, Left} <- [{0, 1024}, {1, 1024}, {2, 1023}, {1025, 0}, {9999, 0}]].
