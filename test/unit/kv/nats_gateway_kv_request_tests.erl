-module(nats_gateway_kv_request_tests).

-include_lib("eunit/include/eunit.hrl").

-define(BUCKETS, #{<<"b">> => <<"x/">>}).

read(Subject, Payload) -> read(Subject, undefined, Payload).

read(Subject, Headers, Payload) ->
    nats_gateway_kv_request:read(Subject, Headers, Payload, <<"m/">>, ?BUCKETS).

bucket() -> nats_gateway_kv_bucket:new(<<"b">>, <<"x/">>, <<"m/">>).

hput(Lines) -> hput(Lines, <<"v">>).

hput(Lines, Payload) ->
    Block = iolist_to_binary(["NATS/1.0\r\n", [[Line, "\r\n"] || Line <- Lines], "\r\n"]),
    read(<<"$KV.b.k">>, Block, Payload).

failure({{answer, {error, _, Failure}}, []}) -> Failure.

written({{write, _, _, Expected, Write}, [{publish, <<"m/x/k">>}]}) -> {Expected, Write}.

writes_test_() ->
    [
        ?_assertEqual(
            {{write, bucket(), <<"m/x/k/l">>, any, {put, undefined, <<"v">>, undefined}}, [
                {publish, <<"m/x/k/l">>}
            ]},
            read(<<"$KV.b.k.l">>, <<"v">>)
        ),
        ?_assertMatch({7, {put, undefined, _, _}}, written(hput(["Nats-Expected-Last-Subject-Sequence: 7"]))),
        %% as jnats writes it
        ?_assertMatch({0, {put, undefined, _, _}}, written(hput(["Nats-Expected-Last-Subject-Sequence:0"]))),
        ?_assertEqual(
            {5, {put, <<"NATS/1.0\r\nX: 1\r\n\r\n">>, <<"v">>, undefined}},
            written(hput(["Nats-Expected-Last-Subject-Sequence: 5", "X: 1", "Nats-Msg-Id: i"]))
        ),
        ?_assertEqual(
            {any, {put, <<"NATS/1.0\r\nX: 1\r\n\r\n">>, <<"v">>, undefined}}, written(hput(["X: 1"]))
        ),
        ?_assertMatch({any, {delete, _}}, written(hput(["KV-Operation: DEL"], <<>>))),
        ?_assertMatch(
            {3, {delete, _}},
            written(hput(["KV-Operation: DEL", "Nats-Expected-Last-Subject-Sequence: 3"], <<>>))
        ),
        ?_assertEqual(
            {any, {delete, <<"NATS/1.0\r\nKV-Operation: PURGE\r\nNats-Rollup: sub\r\n\r\n">>}},
            written(hput(["KV-Operation:PURGE", "Nats-Rollup:sub"], <<>>))
        ),
        ?_assertMatch({any, {put, _, <<"v">>, undefined}}, written(hput(["KV-Operation: PUT"]))),
        ?_assertMatch({failed, _}, failure(hput([], <<>>))),
        ?_assertEqual(no_rollup, failure(hput(["Nats-Rollup: all"]))),
        ?_assertEqual(other_stream, failure(hput(["Nats-Expected-Stream: KV_c"]))),
        ?_assertMatch({any, _}, written(hput(["Nats-Expected-Stream: KV_b"]))),
        ?_assertMatch({failed, _}, failure(hput(["Nats-Expected-Last-Sequence: 1"]))),
        ?_assertEqual(bad_request, failure(hput(["Nats-Expected-Last-Subject-Sequence: -1"]))),
        ?_assertEqual(bad_request, failure(hput(["Nats-Expected-Last-Subject-Sequence: 1x"]))),
        ?_assertEqual({{answer, no_responders}, []}, read(<<"$KV.c.k">>, <<"v">>)),
        ?_assertEqual({{answer, no_responders}, []}, read(<<"$JS.ACK.x">>, <<>>)),
        ?_assertMatch({failed, _}, failure(read(<<"$KV.b.k..l">>, <<"v">>)))
    ].

ttl_test_() ->
    Ttl = fun(Text) -> hput([["Nats-TTL: ", Text]]) end,
    [
        {Text, ?_assertMatch({any, {put, undefined, <<"v">>, Seconds}}, written(Ttl(Text)))}
     || {Text, Seconds} <- [
            {"1", 1}, {"4294967295", 4294967295}, {"1s", 1}, {"1000ms", 1}, {"1001ms", 2}, {"1m30s", 90},
            {"1.5s", 2}, {"2h", 7200}, {"never", undefined}, {"1h0m0.5s", 3601}
        ]
    ] ++
        [
            {Text, ?_assertEqual(invalid_ttl, failure(Ttl(Text)))}
         || Text <- ["0", "4294967296", "999ms", "0s", "x", "", "1d", "-1s", "1s1", "2000000h"]
        ].

reads_test_() ->
    Last = {{get, direct, bucket(), {last, <<"k">>, <<"m/x/k">>}}, [{subscribe, <<"m/x/k">>}]},
    [
        ?_assertEqual(Last, read(<<"$JS.API.DIRECT.GET.KV_b.$KV.b.k">>, <<>>)),
        ?_assertEqual(Last, read(<<"$JS.API.DIRECT.GET.KV_b">>, <<"{\"last_by_subj\":\"$KV.b.k\"}">>)),
        ?_assertMatch(
            {{get, message, _, {last, <<"k">>, _}}, _},
            read(<<"$JS.API.STREAM.MSG.GET.KV_b">>, <<"{\"last_by_subj\":\"$KV.b.k\"}">>)
        ),
        %% reading by revision looks at all of the bucket
        ?_assertMatch(
            {{get, direct, _, {revision, 7}}, [{subscribe, <<"m/x/#">>}]},
            read(<<"$JS.API.DIRECT.GET.KV_b">>, <<"{\"seq\":7}">>)
        ),
        ?_assertMatch(
            {{get, direct, _, {next, <<"k.>">>, <<"m/x/k/#">>, 1}}, [{subscribe, <<"m/x/k/#">>}]},
            read(<<"$JS.API.DIRECT.GET.KV_b">>, <<"{\"next_by_subj\":\"$KV.b.k.>\"}">>)
        ),
        ?_assertEqual(bad_request, failure(read(<<"$JS.API.DIRECT.GET.KV_b">>, <<"{}">>))),
        ?_assertEqual(bad_request, failure(read(<<"$JS.API.DIRECT.GET.KV_b">>, <<"x">>))),
        ?_assertEqual(message_not_found, failure(read(<<"$JS.API.DIRECT.GET.KV_b.$KV.c.k">>, <<>>))),
        ?_assertEqual(message_not_found, failure(read(<<"$JS.API.DIRECT.GET.KV_b.$KV.b.*">>, <<>>))),
        ?_assertEqual(stream_not_found, failure(read(<<"$JS.API.DIRECT.GET.KV_c.$KV.c.k">>, <<>>))),
        ?_assertEqual(invalid_json, failure(read(<<"$JS.API.STREAM.MSG.GET.KV_b">>, <<"[]">>)))
    ].

streams_test_() ->
    Create = fun(Json) -> read(<<"$JS.API.STREAM.CREATE.KV_b">>, Json) end,
    [
        ?_assertEqual({account_info, []}, read(<<"$JS.API.INFO">>, <<>>)),
        ?_assertEqual({{stream_names, [<<"KV_b">>], 0}, []}, read(<<"$JS.API.STREAM.NAMES">>, <<>>)),
        ?_assertEqual(
            {{stream_names, [<<"KV_b">>], 0}, []},
            read(<<"$JS.API.STREAM.NAMES">>, <<"{\"subject\":\"$KV.b.>\"}">>)
        ),
        ?_assertEqual(
            {{stream_names, [], 0}, []}, read(<<"$JS.API.STREAM.NAMES">>, <<"{\"subject\":\"orders\"}">>)
        ),
        ?_assertMatch({{stream_list, [_], 3}, [_]}, read(<<"$JS.API.STREAM.LIST">>, <<"{\"offset\":3}">>)),
        ?_assertEqual(
            {{stream_info, info, bucket()}, [{subscribe, <<"m/x/#">>}]},
            read(<<"$JS.API.STREAM.INFO.KV_b">>, <<>>)
        ),
        ?_assertEqual(stream_not_found, failure(read(<<"$JS.API.STREAM.INFO.KV_c">>, <<>>))),
        ?_assertMatch({{stream_info, create, _}, _}, Create(<<"{\"max_msgs_per_subject\":1,\"max_age\":0}">>)),
        ?_assertEqual(other_configuration, failure(Create(<<"{\"max_msgs_per_subject\":2}">>))),
        ?_assertEqual(other_configuration, failure(Create(<<"{\"subjects\":[\"a\"]}">>))),
        ?_assertEqual(other_configuration, failure(Create(<<"{\"max_age\":1}">>))),
        ?_assertEqual(other_configuration, failure(Create(<<"{\"mirror\":{\"name\":\"m\"}}">>))),
        ?_assertEqual({not_allowed, stream_create}, failure(read(<<"$JS.API.STREAM.CREATE.KV_c">>, <<"{}">>))),
        ?_assertEqual(stream_not_found, failure(read(<<"$JS.API.STREAM.UPDATE.KV_c">>, <<"{}">>))),
        ?_assertEqual({not_allowed, stream_delete}, failure(read(<<"$JS.API.STREAM.DELETE.KV_b">>, <<>>))),
        ?_assertEqual(
            {{purge, bucket(), <<"m/x/k">>, false}, [{publish, <<"m/x/k">>}]},
            read(<<"$JS.API.STREAM.PURGE.KV_b">>, <<"{\"filter\":\"$KV.b.k\"}">>)
        ),
        ?_assertMatch(
            {{purge, _, _, true}, _},
            read(<<"$JS.API.STREAM.PURGE.KV_b">>, <<"{\"filter\":\"$KV.b.k\",\"keep\":1}">>)
        ),
        [
            ?_assertEqual({not_allowed, purge}, failure(read(<<"$JS.API.STREAM.PURGE.KV_b">>, Json)))
         || Json <- [<<>>, <<"{\"filter\":\"$KV.b.>\"}">>, <<"{\"filter\":\"$KV.b.k\",\"seq\":1}">>]
        ],
        ?_assertEqual(not_implemented, failure(read(<<"$JS.API.SERVER.REMOVE">>, <<>>))),
        ?_assertEqual(bad_request, failure(read(<<"$JS.API.STREAM.NAMES">>, binary:copy(<<" ">>, 65537)))),
        ?_assertMatch(
            {{stream_names, _, _}, _},
            read(<<"$JS.API.STREAM.NAMES">>, <<"{}", (binary:copy(<<" ">>, 65534))/binary>>)
        )
    ].

consumer(Config) -> consumer(<<"$JS.API.CONSUMER.CREATE.KV_b">>, Config).

consumer(Subject, Config) ->
    Full = maps:merge(#{ack_policy => none, deliver_subject => <<"_INBOX.d">>}, Config),
    read(Subject, nats_gateway_nif:json(#{stream_name => <<"KV_b">>, config => Full})).

consumers_test_() ->
    Made = fun({{create_consumer, _, Consumer}, Rights}) -> {Consumer, Rights} end,
    [
        fun() ->
            {Consumer, Rights} = Made(consumer(#{})),
            ?assertEqual([{subscribe, <<"m/x/#">>}], Rights),
            ?assertMatch(
                #{
                    name := undefined,
                    deliver_topic := <<"m/_INBOX/d">>,
                    filters := [{<<">">>, <<"m/x/#">>}],
                    start := 0,
                    headers_only := false,
                    flow_control := false,
                    heartbeat := infinity,
                    inactive := 5000
                },
                Consumer
            )
        end,
        fun() ->
            {Consumer, Rights} = Made(
                consumer(<<"$JS.API.CONSUMER.CREATE.KV_b.n.$KV.b.>">>, #{
                    filter_subjects => [<<"$KV.b.k">>, <<"$KV.b.l.*">>],
                    deliver_policy => by_start_sequence,
                    opt_start_seq => 9,
                    headers_only => true,
                    flow_control => true,
                    idle_heartbeat => 5000000000,
                    inactive_threshold => 300000000000
                })
            ),
            ?assertEqual([{subscribe, <<"m/x/k">>}, {subscribe, <<"m/x/l/+">>}], Rights),
            ?assertMatch(
                #{
                    name := <<"n">>,
                    start := 9,
                    headers_only := true,
                    flow_control := true,
                    heartbeat := 5000,
                    inactive := 300000
                },
                Consumer
            )
        end,
        ?_assertMatch({#{start := new}, _}, Made(consumer(#{deliver_policy => new}))),
        ?_assertMatch({#{start := 0}, _}, Made(consumer(#{deliver_policy => last_per_subject}))),
        %% a heartbeat in each instant would cost more than the values
        ?_assertMatch({#{heartbeat := 100}, _}, Made(consumer(#{idle_heartbeat => 1}))),
        ?_assertEqual(push_only, failure(consumer(#{deliver_subject => <<>>}))),
        [
            {lists:flatten(io_lib:format("~p", [Config])),
                ?_assertEqual({consumer_option, Option}, failure(consumer(Config)))}
         || {Option, Config} <- [
                {<<"durable_name">>, #{durable_name => <<"d">>}},
                {<<"deliver_group">>, #{deliver_group => <<"g">>}},
                {<<"ack_policy">>, #{ack_policy => explicit}},
                {<<"replay_policy">>, #{replay_policy => original}},
                {<<"deliver_policy">>, #{deliver_policy => by_start_time}},
                {<<"opt_start_seq">>, #{deliver_policy => by_start_sequence}},
                {<<"deliver_subject">>, #{deliver_subject => <<"a.*">>}},
                {<<"name">>, #{name => <<"a.b">>}},
                {<<"name">>, #{name => 1}}
            ]
        ],
        ?_assertMatch({no_filter, _}, failure(consumer(#{filter_subject => <<"$KV.c.>">>}))),
        ?_assertEqual(bad_request, failure(consumer(#{filter_subjects => [1]}))),
        ?_assertEqual(bad_request, failure(read(<<"$JS.API.CONSUMER.CREATE.KV_b">>, <<"{}">>))),
        ?_assertEqual({{consumer_info, bucket(), <<"n">>}, []}, read(<<"$JS.API.CONSUMER.INFO.KV_b.n">>, <<>>)),
        ?_assertEqual({{delete_consumer, bucket(), <<"n">>}, []}, read(<<"$JS.API.CONSUMER.DELETE.KV_b.n">>, <<>>)),
        ?_assertEqual(bad_request, failure(read(<<"$JS.API.CONSUMER.INFO.KV_b">>, <<>>))),
        ?_assertEqual({{taken, <<"n">>, <<"t">>}, []}, read(<<"$JS.FC.KV_b.n.t">>, <<>>)),
        ?_assertEqual({ignore, []}, read(<<"$JS.FC.KV_b">>, <<>>))
    ].

%% Only the numbers are hidden from those who may not subscribe to all of the bucket.
hidden_test() ->
    {Action, [Right]} = read(<<"$JS.API.STREAM.INFO.KV_b">>, <<>>),
    ?assertEqual({hidden, Action}, nats_gateway_kv_request:deny(Action, Right)).

denied_test_() ->
    [
        ?_assertEqual(
            {answer, {error, Type, {denied, publish, <<"t">>}}},
            nats_gateway_kv_request:deny(Action, {publish, <<"t">>})
        )
     || {Action, Type} <- [
            {element(1, read(<<"$KV.b.k">>, <<"v">>)), {publish, <<"KV_b">>}},
            {element(1, read(<<"$JS.API.DIRECT.GET.KV_b.$KV.b.k">>, <<>>)), direct},
            {element(1, read(<<"$KV.b.k">>, nats_gateway_kv_answer:deleted(<<"DEL">>), <<>>)), {publish, <<"KV_b">>}},
            {element(1, consumer(#{})), <<"consumer_create">>}
        ]
    ].
