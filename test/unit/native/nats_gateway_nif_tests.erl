%% Term shapes of every NIF; the protocol itself is tested in native/protocol.
-module(nats_gateway_nif_tests).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(NIF, nats_gateway_nif).

settings() ->
    settings(<<>>).

settings(Mountpoint) ->
    #decoder{
        max_control_line = 4096,
        max_payload = 1048576,
        phase = open,
        headers = true,
        mountpoint = Mountpoint
    }.

decode(Bytes) ->
    ?NIF:decode(Bytes, settings()).

%% All operations, over as many calls as it takes.
decode_all(Bytes, Settings) ->
    decode_all(Bytes, Settings, [], 0).

decode_all(Bytes, Settings, Ops, Calls) ->
    case ?NIF:decode(Bytes, Settings) of
        {ok, More, Rest, 0} when byte_size(Rest) < byte_size(Bytes) ->
            decode_all(Rest, Settings, [More | Ops], Calls + 1);
        {ok, More, Rest, Need} when Need > byte_size(Rest) ->
            {lists:append(lists:reverse([More | Ops])), Rest, Calls + 1}
    end.

encode(Deliveries) ->
    encode(Deliveries, <<>>).

encode(Deliveries, Mountpoint) ->
    {Frames, _} = encode_all(Deliveries, Mountpoint, [], 0),
    Frames.

%% The frames, and the number of calls.
encode_all([], _, Data, Calls) when Calls > 0 ->
    {iolist_to_binary(lists:reverse(Data)), Calls};
encode_all(Deliveries, Mountpoint, Data, Calls) ->
    {More, 0, Rest} = ?NIF:encode(Deliveries, Mountpoint),
    encode_all(Rest, Mountpoint, [More | Data], Calls + 1).

%% decode/2

decode_operations_test() ->
    ?assertEqual(
        {ok,
            [
                ping,
                pong,
                #sub{subject = <<"a.*">>, filter = <<"a/+">>, sid = <<"1">>},
                #sub{
                    subject = <<"a.>">>,
                    filter = <<"a/#">>,
                    queue_group = <<"q/x">>,
                    share_name = <<"q%2Fx">>,
                    sid = <<"2">>
                },
                #sub{subject = <<"a..b">>, filter = invalid, sid = <<"3">>},
                #unsub{sid = <<"1">>, max = 0},
                #unsub{sid = <<"2">>, max = 17}
            ],
            <<>>, 1},
        decode(<<
            "PING\r\nPONG\r\n+OK\r\nINFO {}\r\nSUB a.* 1\r\nSUB a.> q/x 2\r\nSUB a..b 3\r\n"
            "UNSUB 1\r\nUNSUB 2 17\r\n"
        >>)
    ).

decode_publish_test() ->
    Block = <<"NATS/1.0\r\nA: b\r\n\r\n">>,
    ?assertEqual(
        {ok,
            [
                #pub{subject = <<"a.b">>, topic = <<"a/b">>, payload = <<"hi">>},
                #pub{subject = <<"a">>, topic = <<"a">>, reply_to = <<"r.1">>, reply_topic = <<"r/1">>, payload = <<>>},
                #pub{subject = <<"a">>, topic = <<"a">>, headers = Block, payload = <<"hi">>},
                #pub{subject = <<"a">>, topic = <<"a">>, reply_to = <<"r">>, reply_topic = <<"r">>, payload = <<"hi">>},
                #pub{subject = <<"a..b">>, topic = invalid, payload = <<"x">>},
                #pub{
                    subject = <<"a.bé"/utf8>>,
                    topic = <<"a/bé"/utf8>>,
                    reply_to = <<255>>,
                    reply_topic = invalid,
                    payload = <<"x">>
                },
                #pub{
                    subject = <<"a.*">>,
                    topic = <<"a/%2A">>,
                    reply_to = <<"a..b">>,
                    reply_topic = invalid,
                    payload = <<"x">>
                },
                #pub{
                    subject = <<"x%20y">>,
                    topic = <<"x y">>,
                    reply_to = <<"x//%20">>,
                    reply_topic = <<"x. ">>,
                    payload = <<"x">>
                }
            ],
            <<>>, 1},
        decode(<<
            "PUB a.b 2\r\nhi\r\n"
            "PUB a r.1 0\r\n\r\n"
            "HPUB a 18 20\r\n",
            Block/binary,
            "hi\r\n"
            "HPUB a r 0 2\r\nhi\r\n"
            "PUB a..b 1\r\nx\r\n"
            "PUB a.bé"/utf8,
            " ",
            255,
            " 1\r\nx\r\n"
            "PUB a.* a..b 1\r\nx\r\n"
            "PUB x%20y x//%20 1\r\nx\r\n"
        >>)
    ).

decode_mountpoint_test() ->
    ?assertMatch(
        {ok,
            [
                #pub{
                    subject = <<"a.b">>,
                    topic = <<"m/a/b">>,
                    reply_to = <<"r">>,
                    reply_topic = <<"m/r">>,
                    payload = <<"x">>
                },
                #pub{
                    subject = <<"a//b">>,
                    topic = <<"m/a.b">>,
                    reply_to = <<"r+">>,
                    reply_topic = <<"m/r%2B">>,
                    payload = <<"x">>
                },
                #sub{subject = <<"*">>, filter = <<"m/+">>, queue_group = <<"q">>, share_name = <<"q">>, sid = <<"1">>}
            ],
            <<>>, 1},
        ?NIF:decode(
            <<"PUB a.b r 1\r\nx\r\nPUB a//b r+ 1\r\nx\r\nSUB * q 1\r\n">>, settings(<<"m/">>)
        )
    ).

decode_connect_test() ->
    {ok, [{connect, Fields}], <<>>, 0} = decode(<<
        "CONNECT {\"verbose\":false,\"pedantic\":true,\"echo\":false,\"headers\":true,"
        "\"no_responders\":true,\"protocol\":1,\"user\":\"u\",\"pass\":\"p\",\"auth_token\":\"t\","
        "\"name\":\"n\\u00e9\",\"lang\":\"l\",\"version\":\"v\",\"tls_required\":false,"
        "\"jwt\":\"j\",\"nkey\":\"k\",\"sig\":\"s\",\"account\":\"a\",\"new_account\":false,"
        "\"other\":1}\r\n"
    >>),
    ?assertEqual(
        #{
            verbose => false,
            pedantic => true,
            echo => false,
            headers => true,
            no_responders => true,
            protocol => 1,
            user => <<"u">>,
            pass => <<"p">>,
            auth_token => <<"t">>,
            name => <<"né"/utf8>>,
            lang => <<"l">>,
            version => <<"v">>,
            tls_required => false,
            jwt => <<"j">>,
            nkey => <<"k">>,
            sig => <<"s">>,
            account => <<"a">>,
            new_account => false
        },
        Fields
    ),
    ?assertEqual({ok, [{connect, #{}}], <<>>, 0}, decode(<<"connect null\r\n">>)).

connect_ends_a_call_test() ->
    ?assertEqual(
        {ok, [ping, {connect, #{user => <<"u">>}}], <<"HPUB x">>, 0},
        decode(<<"PING\r\nCONNECT {\"user\":\"u\",\"pass\":null}\r\nHPUB x">>)
    ).

decode_need_test() ->
    ?assertEqual({ok, [], <<>>, 1}, decode(<<>>)),
    ?assertEqual({ok, [ping], <<"PI">>, 3}, decode(<<"PING\r\nPI">>)),
    ?assertEqual({ok, [], <<"PUB a 5\r\nhe">>, 9 + 5 + 1}, decode(<<"PUB a 5\r\nhe">>)),
    ?assertEqual({ok, [], <<"PUB a 2\r\nhi\r">>, 9 + 2 + 2}, decode(<<"PUB a 2\r\nhi\r">>)).

decode_errors_test_() ->
    Closed = (settings())#decoder{phase = connect_only},
    NoHeaders = (settings())#decoder{headers = false},
    Small = (settings())#decoder{max_control_line = 20, max_payload = 10},
    [
        {binary_to_list(Bytes), ?_assertEqual({error, Reason, [ping]}, Decode(Bytes))}
     || {Bytes, Settings, Reason} <- [
            {<<"PUX">>, settings(), unknown_protocol_operation},
            {<<"PUB a 2\r\nhi\n">>, settings(), unknown_protocol_operation},
            {<<"PUB a 11\r\n">>, Small, maximum_payload_violation},
            {<<"SUB a.b.c.d.e.f.g.h.i.j 1">>, Small, maximum_control_line_exceeded},
            {<<"PUB a\r\n">>, settings(), bad_arguments},
            {<<"PUB a -1\r\n">>, settings(), bad_size},
            {<<"HPUB a 2 1\r\n">>, settings(), bad_size},
            {<<"CONNECT []\r\n">>, settings(), bad_json},
            {<<"INFO x\r\n">>, settings(), bad_json},
            {<<"HPUB a 0 1\r\n">>, NoHeaders, headers_not_supported},
            {<<"-ERR 'x'\r\n">>, settings(), client_error}
        ],
        Decode <- [fun(Input) -> ?NIF:decode(<<"PING\r\n", Input/binary>>, Settings) end]
    ] ++
        [
            ?_assertEqual(
                {error, authorization_violation, []}, ?NIF:decode(<<"P">>, Closed)
            ),
            ?_assertEqual(
                {ok, [{connect, #{}}], <<"PING\r\n">>, 0},
                ?NIF:decode(<<"CONNECT {}\r\nPING\r\n">>, Closed)
            )
        ].

%% A call stops after a bounded amount of work, and nothing gets lost between calls.
bounded_calls_test() ->
    Tiny = <<"PUB a.b 0\r\n\r\n">>,
    Count = 1048576 div byte_size(Tiny),
    Bytes = binary:copy(Tiny, Count),
    {Ops, <<>>, Calls} = decode_all(Bytes, settings()),
    ?assert(Calls > 4),
    ?assertEqual(Count, length(Ops)),
    ?assertEqual(
        [#pub{subject = <<"a.b">>, topic = <<"a/b">>, payload = <<>>}], lists:usort(Ops)
    ).

%% So does the scheduler's view: the process is preempted after about as many reductions as the
%% work is worth.
reductions_test() ->
    Bytes = binary:copy(<<"PUB a.b 16\r\n0123456789abcdef\r\n">>, 20000),
    {reductions, Before} = process_info(self(), reductions),
    {ok, Ops, _, 0} = decode(Bytes),
    {reductions, After} = process_info(self(), reductions),
    ?assert(length(Ops) > 50),
    ?assert(After - Before > length(Ops) div 4).

%% Parts of all sizes, so that each way of copying and referring to them is taken.
payload_sizes_test() ->
    Sizes = [0, 1, 63, 64, 65, 100, 1023, 1024, 1025, 4096, 5000, 70000],
    Publish = fun(Size) ->
        Subject = <<"a.", (binary:copy(<<"s">>, Size rem 3000 + 1))/binary>>,
        Payload = rand:bytes(Size),
        {Subject, Payload, [
            <<"PUB ">>, Subject, <<" ">>, integer_to_binary(Size), <<"\r\n">>, Payload, <<"\r\n">>
        ]}
    end,
    Messages = [Publish(Size) || Size <- Sizes ++ lists:reverse(Sizes), _ <- lists:seq(1, 5)],
    Bytes = iolist_to_binary([Line || {_, _, Line} <- Messages]),
    {Ops, <<>>, _} = decode_all(Bytes, settings()),
    ?assertEqual(
        [{Subject, Payload} || {Subject, Payload, _} <- Messages],
        [{Subject, Payload} || #pub{
            subject = Subject,
            reply_to = undefined,
            reply_topic = undefined,
            headers = undefined,
            payload = Payload
        } <- Ops]
    ).

%% What is kept of a chunk keeps no more of it than 64 times its own size, in whichever call the
%% chunk is decoded: behind a large payload a chunk is as large as that.
parts_do_not_keep_the_chunk_test_() ->
    {timeout, 60, [
        ?_test(begin
            Lines = binary:copy(message(Size), 30),
            Bytes = iolist_to_binary([message(Before), Lines, "PUB a.b ", Partial]),
            {Ops, Rest, _} = decode_all(Bytes, settings()),
            ?assertEqual(31, length(Ops)),
            [keeps_little(Payload) || #pub{payload = Payload} <- Ops],
            keeps_little(Rest)
        end)
     || Size <- [64, 65, 128, 1023, 1024, 1100, 4095, 4096, 4097, 16384, 20000],
        Before <- [0, 5000, 100000, 1048576],
        Partial <- [<<>>, x(65), x(2000)]
    ]}.

%% A payload that is a good part of the chunk is not copied.
large_parts_are_references_test() ->
    Bytes = iolist_to_binary([message(1048576), message(17000)]),
    {[#pub{payload = Large}, #pub{payload = Smaller}], <<>>, _} =
        decode_all(Bytes, settings()),
    [?assertEqual(byte_size(Bytes), binary:referenced_byte_size(Part)) || Part <- [Large, Smaller]].

%% What stays as long as the subscription keeps nothing else.
subscriptions_are_copies_test() ->
    [Subject, Queue, Sid] = [binary:copy(Letter, 1100) || Letter <- [<<"s">>, <<"q">>, <<"1">>]],
    Subscribe = <<"SUB ", Subject/binary, " ", Queue/binary, " ", Sid/binary, "\r\n">>,
    Bytes = <<Subscribe/binary, "UNSUB ", Sid/binary, "\r\n">>,
    {ok, Ops, <<>>, _} = decode(Bytes),
    ?assertEqual([#sub{
        subject = Subject, filter = Subject, queue_group = Queue, share_name = Queue, sid = Sid
    }, #unsub{sid = Sid, max = 0}], Ops),
    [
        ?assertEqual(1100, binary:referenced_byte_size(Part))
     || Op <- Ops, Part <- tuple_to_list(Op), is_binary(Part)
    ].

message(Size) ->
    iolist_to_binary(["PUB a.b ", integer_to_binary(Size), "\r\n", x(Size), "\r\n"]).

x(Size) -> binary:copy(<<"x">>, Size).

%% OTP 27 counts the bits of binaries on the heap.
keeps_little(Part) when byte_size(Part) =< 64 ->
    ?assert(binary:referenced_byte_size(Part) =< 8 * 64);
keeps_little(Part) ->
    ?assert(binary:referenced_byte_size(Part) =< 64 * byte_size(Part)).

%% Wherever a chunk ends.
every_cut_test() ->
    Bytes = <<
        "SUB a.* q 1\r\nPUB a.b r.1 5\r\nhello\r\nHPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
        "UNSUB 1 2\r\nPING\r\n"
    >>,
    {ok, Ops, <<>>, 1} = decode(Bytes),
    [
        begin
            <<Front:Cut/binary, Back/binary>> = Bytes,
            {ok, First, Rest, Need} = decode(Front),
            ?assert(Need > byte_size(Rest)),
            {ok, Second, <<>>, 1} = decode(<<Rest/binary, Back/binary>>),
            ?assertEqual(Ops, First ++ Second)
        end
     || Cut <- lists:seq(0, byte_size(Bytes))
    ].

decode_badarg_test_() ->
    [
        ?_assertError(badarg, ?NIF:decode(Bytes, Settings))
     || {Bytes, Settings} <- [
            {"PING\r\n", settings()},
            {[<<"PING\r\n">>], settings()},
            {<<1:1>>, settings()},
            {<<>>, erlang:delete_element(#decoder.mountpoint, settings())},
            {<<>>, (settings())#decoder{max_control_line = -1}},
            {<<>>, (settings())#decoder{max_payload = infinity}},
            {<<>>, (settings())#decoder{phase = closed}},
            {<<>>, (settings())#decoder{headers = yes}},
            {<<>>, settings("m/")}
        ]
    ].

%% encode/2

encode_msg_test() ->
    ?assertEqual(<<>>, encode([])),
    ?assertEqual(
        <<"MSG a.b 1 2\r\nhi\r\nMSG a.b 22 2\r\nhi\r\nMSG /.a//b 1 0\r\n\r\n">>,
        encode([
            #message{topic = <<"a/b">>, sids = [<<"1">>, <<"22">>], payload = <<"hi">>},
            #message{topic = <<"x">>, sids = [], payload = <<"nobody">>},
            #message{topic = <<"/a.b">>, sids = [<<"1">>], payload = <<>>}
        ])
    ).

encode_mountpoint_test() ->
    ?assertEqual(
        <<"MSG a 1 r.1 2\r\nhi\r\nMSG other 1 m/r 2\r\nhi\r\n">>,
        encode(
            [
                #message{
                    topic = <<"m/a">>,
                    sids = [<<"1">>],
                    reply = {topic, <<"m/r/1">>, undefined},
                    payload = <<"hi">>
                },
                #message{
                    topic = <<"other">>,
                    sids = [<<"1">>],
                    reply = {subject, <<"m/r">>},
                    payload = <<"hi">>
                }
            ],
            <<"m/">>
        )
    ).

encode_reply_test_() ->
    [
        ?_assertEqual(
            <<"MSG a 1 ", Expected/binary, " 2\r\nhi\r\n">>,
            encode([#message{topic = <<"a">>, sids = [<<"1">>], reply = Reply, payload = <<"hi">>}])
        )
     || {Reply, Expected} <- [
            {{subject, <<"r..x.*">>}, <<"r..x.*">>},
            {{subject, <<255, 1>>}, <<255, 1>>},
            {{subject, <<"a b\r\nc">>}, <<"a%20b%0D%0Ac">>},
            {{topic, <<"r/1">>, undefined}, <<"r.1">>},
            {{topic, <<"r">>, <<"corr">>}, <<"_MQTT.tcg.cY29ycg">>},
            {{topic, <<"r">>, <<>>}, <<"_MQTT.tcg.c">>},
            {{topic, <<"r">>, binary:copy(<<"x">>, 3000)}, <<"r">>}
        ]
    ].

encode_headers_test() ->
    Block = <<"NATS/1.0\r\nA:b\r\n\r\n">>,
    ?assertEqual(
        <<
            "HMSG a 1 17 19\r\n",
            Block/binary,
            "hi\r\n"
            "HMSG a 1 r 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n"
            "HMSG a 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
            "HMSG a 1 40 40\r\nNATS/1.0\r\nA%20: %0D\r\nContent-Type: x\r\n\r\n\r\n"
            "MSG a 1 2\r\nhi\r\n"
            "MSG a 1 2\r\nhi\r\n"
        >>,
        encode([
            #message{topic = <<"a">>, sids = [<<"1">>], headers = Block, payload = <<"hi">>},
            #message{
                topic = <<"a">>,
                sids = [<<"1">>],
                reply = {subject, <<"r">>},
                headers = {properties, [{<<"A">>, <<"b">>}], undefined},
                payload = <<"hi">>
            },
            #message{
                topic = <<"a">>,
                sids = [<<"1">>],
                headers = {properties, [{<<"Nats-Status">>, <<"503">>}], undefined},
                payload = <<>>
            },
            #message{
                topic = <<"a">>,
                sids = [<<"1">>],
                headers = {properties, [{<<"A ">>, <<"\r">>}], <<"x">>},
                payload = <<>>
            },
            #message{
                topic = <<"a">>,
                sids = [<<"1">>],
                headers = {properties, [], undefined},
                payload = <<"hi">>
            },
            #message{topic = <<"a">>, sids = [<<"1">>], headers = <<>>, payload = <<"hi">>}
        ])
    ).

%% Large payloads are the given terms, at their places.
%% What comes after the operation and its blank.
encode_control_line_test_() ->
    Frame = fun(Topic, Reply) ->
        {Data, TooLong, []} = ?NIF:encode([#message{
            topic = Topic,
            sids = [<<"1">>],
            reply = Reply,
            payload = <<"hi">>
        }], <<>>),
        {iolist_to_binary(Data), TooLong}
    end,
    Of = fun(Size) -> binary:copy(<<"x">>, Size) end,
    [
        ?_assertEqual({<<"MSG ", (Of(4092))/binary, " 1 2\r\nhi\r\n">>, 0}, Frame(Of(4092), undefined)),
        ?_assertEqual({<<>>, 1}, Frame(Of(4093), undefined)),
        ?_assertEqual(
            {<<"MSG t 1 ", (Of(4090))/binary, " 2\r\nhi\r\n">>, 0},
            Frame(<<"t">>, {topic, Of(4090), undefined})
        ),
        ?_assertEqual({<<"MSG t 1 2\r\nhi\r\n">>, 0}, Frame(<<"t">>, {topic, Of(4091), undefined})),
        ?_assertEqual({<<"MSG t 1 2\r\nhi\r\n">>, 0}, Frame(<<"t">>, {subject, Of(60000)}))
    ].

%% What is left out is work, too.
encode_bounded_calls_for_nothing_test() ->
    Long = #message{
        topic = binary:copy(<<"\t">>, 65535),
        sids = [<<"1">>],
        reply = {subject, binary:copy(<<"\t">>, 65535)},
        payload = <<>>
    },
    {<<>>, 1, [Long]} = ?NIF:encode([Long, Long], <<>>).

encode_references_large_payloads_test() ->
    Payloads = [binary:copy(<<N>>, Size) || {N, Size} <- [{$a, 4095}, {$b, 4096}, {$c, 100000}]],
    Deliveries = [#message{topic = <<"t">>, sids = [<<"1">>, <<"2">>], payload = P} || P <- Payloads],
    {Data, 0, _} = ?NIF:encode(Deliveries, <<>>),
    [_, Large, Larger] = Payloads,
    Referenced = [Part || Part <- Data, lists:member(Part, Payloads)],
    ?assertEqual([Large, Large, Larger, Larger], Referenced),
    ?assertEqual(
        iolist_to_binary([
            [<<"MSG t ">>, Sid, <<" ">>, integer_to_binary(byte_size(P)), <<"\r\n">>, P, <<"\r\n">>]
         || P <- Payloads, Sid <- [<<"1">>, <<"2">>]
        ]),
        encode(Deliveries)
    ).

%% Also where there is next to nothing around it.
encode_one_large_payload_test() ->
    Payload = binary:copy(<<"x">>, 4096),
    ?assertEqual(
        <<"MSG t 1 4096\r\n", Payload/binary, "\r\n">>,
        encode([#message{topic = <<"t">>, sids = [<<"1">>], payload = Payload}])
    ).

%% As with decode: a call stops after a bounded amount of work, within the sids of a delivery, too.
encode_bounded_calls_test_() ->
    Sids = [integer_to_binary(N) || N <- lists:seq(1, 20000)],
    Delivery = fun(Sid, Size) ->
        #message{
            topic = <<"t">>,
            sids = [Sid],
            reply = {topic, <<"r">>, undefined},
            headers = {properties, [{<<"A">>, <<"b">>}], undefined},
            payload = binary:copy(<<"x">>, Size)
        }
    end,
    [
        {Name, fun() ->
            {Frames, Calls} = encode_all(Deliveries, <<>>, [], 0),
            ?assert(Calls > 3),
            ?assertEqual(
                iolist_to_binary([encode([One]) || One <- Separate]),
                Frames
            )
        end}
     || {Name, Deliveries, Separate} <- [
            {"many sids", [(Delivery(<<>>, 20))#message{sids = Sids}], [Delivery(S, 20) || S <- Sids]},
            {"many sids, block of headers",
                [#message{
                    topic = <<"t">>,
                    sids = Sids,
                    headers = <<"NATS/1.0\r\n\r\n">>,
                    payload = <<"x">>
                }],
                [#message{
                    topic = <<"t">>,
                    sids = [S],
                    headers = <<"NATS/1.0\r\n\r\n">>,
                    payload = <<"x">>
                } || S <- Sids]},
            {"many deliveries", [Delivery(S, 20) || S <- Sids], [Delivery(S, 20) || S <- Sids]},
            {"copied payloads", [Delivery(<<"1">>, 4095) || _ <- lists:seq(1, 1000)],
                [Delivery(<<"1">>, 4095) || _ <- lists:seq(1, 1000)]},
            {"referenced payloads", [Delivery(<<"1">>, 4096) || _ <- lists:seq(1, 9000)],
                [Delivery(<<"1">>, 4096) || _ <- lists:seq(1, 9000)]}
        ]
    ].

encode_badarg_test_() ->
    Good = #message{topic = <<"a">>, sids = [<<"1">>], payload = <<>>},
    [
        ?_assertError(badarg, ?NIF:encode(Deliveries, Mountpoint))
     || {Deliveries, Mountpoint} <- [
            {Good, <<>>},
            {[Good | Good], <<>>},
            {[Good], undefined},
            {[Good#message{sids = <<"1">>}], <<>>},
            {[Good#message{sids = [1]}], <<>>},
            {[Good#message{sids = [<<"1">> | <<"2">>]}], <<>>},
            {[erlang:append_element(Good, more)], <<>>}
        ]
    ].

%% One such message costs nobody another one.
encode_leaves_out_what_cannot_be_written_test_() ->
    Good = #message{topic = <<"a">>, sids = [<<"1">>, <<"2">>], payload = <<"x">>},
    Frames = encode([Good]),
    [
        ?_assertEqual({Expected, 2}, encode_all([Good || true <- [Before]] ++ [Bad] ++ After))
     || {Element, Wrong} <- [
            {#message.topic, "a"},
            {#message.topic, undefined},
            {#message.reply, <<"r">>},
            {#message.reply, {topic, <<"r">>}},
            {#message.reply, {topic, 1, undefined}},
            {#message.reply, {topic, <<"r">>, 1}},
            {#message.reply, {subject, <<"r">>, undefined}},
            {#message.headers, []},
            {#message.headers, 1},
            {#message.headers, {properties, [{<<"a">>, b}], undefined}},
            {#message.headers, {properties, [{1, <<"b">>}], undefined}},
            {#message.headers, {properties, [{<<"a">>, <<"b">>}, pair], undefined}},
            {#message.headers, {properties, [{<<"a">>, <<"b">>} | x], undefined}},
            {#message.headers, {properties, #{<<"a">> => <<"b">>}, undefined}},
            {#message.headers, {properties, [], 1}},
            {#message.headers, {headers, [], undefined}},
            {#message.payload, ["iodata"]},
            {#message.payload, #{}}
        ],
        Bad <- [setelement(Element, Good, Wrong)],
        {Before, After, Expected} <- [
            {false, [], <<>>},
            {true, [], Frames},
            {false, [Good], Frames},
            {true, [Good, Good], <<Frames/binary, Frames/binary, Frames/binary>>}
        ]
    ].

%% The work of a call is bounded for them, too.
encode_many_that_cannot_be_written_test() ->
    Bad = #message{topic = <<"a">>, sids = [<<"1">>], payload = nothing},
    ?assertEqual({<<>>, 100000}, encode_all(lists:duplicate(100000, Bad))),
    {<<>>, LeftOut, Rest} = ?NIF:encode(lists:duplicate(100000, Bad), <<>>),
    ?assert(LeftOut > 0),
    ?assertEqual(100000, LeftOut + length(Rest)),
    ?assertNotEqual([], Rest).

encode_all(Deliveries) -> encode_all(?NIF:encode(Deliveries, <<>>), <<>>, 0).

encode_all({Data, LeftOut, Rest}, Frames, Sum) ->
    NFrames = iolist_to_binary([Frames, Data]),
    case Rest of
        [] -> {NFrames, Sum + LeftOut};
        _ -> encode_all(?NIF:encode(Rest, <<>>), NFrames, Sum + LeftOut)
    end.

%% What is published comes back as it was sent.
round_trip_test() ->
    Bytes = <<
        "HPUB a//b.%20.x r.1 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\nPUB /.+ r* 3\r\n\r\n.\r\n"
    >>,
    {ok, Ops, <<>>, 1} = ?NIF:decode(Bytes, settings(<<"m/">>)),
    ?assertEqual(
        <<
            "HMSG a//b.%20.x 7 r.1 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n"
            "MSG /.+ 7 r* 3\r\n\r\n.\r\n"
        >>,
        encode(
            [
                #message{
                    topic = Topic,
                    sids = [<<"7">>],
                    reply = {topic, ReplyTopic, undefined},
                    headers = Headers,
                    payload = Payload
                }
             || #pub{topic = Topic, reply_topic = ReplyTopic, headers = Headers, payload = Payload} <- Ops
            ],
            <<"m/">>
        )
    ).

%% An MQTT request through a NATS service that knows nothing of it.
correlation_test() ->
    Frame = encode(
        [#message{
            topic = <<"m/svc">>,
            sids = [<<"1">>],
            reply = {topic, <<"m/r/1">>, <<0, 255>>},
            payload = <<"?">>
        }], <<"m/">>
    ),
    [<<"MSG">>, <<"svc">>, <<"1">>, Reply, <<"1\r\n?\r\n">>] = binary:split(
        Frame, <<" ">>, [global]
    ),
    ?assertEqual({<<"m/r/1">>, <<0, 255>>}, ?NIF:topic(Reply, <<"m/">>)),
    ?assertEqual(
        {ok, [#pub{
            subject = Reply,
            topic = {<<"n/r/1">>, <<0, 255>>},
            reply_to = Reply,
            reply_topic = {<<"n/r/1">>, <<0, 255>>},
            payload = <<"!">>
        }], <<>>, 1},
        ?NIF:decode(<<"PUB ", Reply/binary, " ", Reply/binary, " 1\r\n!\r\n">>, settings(<<"n/">>))
    ),
    ?assertEqual(<<"_MQTT/x">>, ?NIF:topic(<<"_MQTT.x">>, <<>>)).

%% The others

info_test() ->
    Line = ?NIF:info(#{
        server_id => <<"id">>,
        version => <<"2.10.27">>,
        proto => 1,
        port => 4222,
        headers => true,
        max_payload => 1048576,
        client_id => 1,
        auth_required => false
    }),
    ?assertEqual(
        <<
            "INFO {\"server_id\":\"id\",\"version\":\"2.10.27\",\"proto\":1,\"port\":4222,"
            "\"headers\":true,\"auth_required\":false,\"max_payload\":1048576,\"client_id\":1} \r\n"
        >>,
        Line
    ),
    ?assertEqual(<<"INFO {} \r\n">>, ?NIF:info(#{})).

info_fields_test_() ->
    [
        ?_assertMatch({match, _}, re:run(?NIF:info(#{Field => Value}), atom_to_list(Field)))
     || {Fields, Value} <- [
            {[server_id, server_name, version, go, host, client_ip, nonce], <<"text">>},
            {[proto, port, max_payload, client_id], 1},
            {[headers, auth_required, tls_required, tls_verify, tls_available, ldm], true}
        ],
        Field <- Fields
    ].

json_test_() ->
    [
        ?_assertEqual(Text, ?NIF:json(Term))
     || {Text, Term} <- [
            {<<"{}">>, #{}},
            {<<"[]">>, []},
            {<<"[1,-1,9223372036854775807,18446744073709551615]">>, [
                1, -1, 16#7FFFFFFFFFFFFFFF, 16#FFFFFFFFFFFFFFFF
            ]},
            {<<"[true,false,null,\"ok\"]">>, [true, false, null, ok]},
            {<<"{\"a\":{\"c\":[\"d\"]},\"b\":2}">>, #{b => 2, <<"a">> => #{c => [<<"d">>]}}},
            {<<"\"\\\"\\\\\\u0000\\n", "ü\""/utf8>>, <<"\"\\\0\n", "ü"/utf8>>},
            {<<(binary:copy(<<"[">>, 31))/binary, "0", (binary:copy(<<"]">>, 31))/binary>>,
                nested(31)}
        ]
    ].

json_badarg_test_() ->
    [
        ?_assertError(badarg, ?NIF:json(Term))
     || Term <- [1.5, {a}, self(), <<255>>, [a | b], #{1 => a}, #{<<255>> => a}, nested(32), 1 bsl 64]
    ].

json_decode_test_() ->
    Brackets = fun(N) -> <<(binary:copy(<<"[">>, N))/binary, "0", (binary:copy(<<"]">>, N))/binary>> end,
    [
        ?_assertEqual({ok, Term}, ?NIF:json_decode(Text))
     || {Text, Term} <- [
            {<<" {} ">>, #{}},
            {<<"[1, -1, 18446744073709551615, 1.5]">>, [1, -1, 16#FFFFFFFFFFFFFFFF, 1.5]},
            {<<"[true,false,null]">>, [true, false, null]},
            {<<"{\"b\":2,\"a\":{\"c\":[\"d\"]},\"b\":3}">>, #{
                <<"a">> => #{<<"c">> => [<<"d">>]}, <<"b">> => 3
            }},
            {Brackets(31), nested(31)}
        ]
    ] ++
        [
            ?_assertEqual(error, ?NIF:json_decode(Text))
         || Text <- [<<>>, <<"{">>, <<"{}x">>, <<"\"", 255, "\"">>, Brackets(32), Brackets(1000)]
        ].

nested(Levels) -> lists:foldl(fun(_, Term) -> [Term] end, 0, lists:seq(1, Levels)).

info_badarg_test_() ->
    [
        ?_assertError(badarg, ?NIF:info(Fields))
     || Fields <- [
            [],
            #{other => 1},
            #{<<"port">> => 1},
            #{port => 65536},
            #{port => <<"1">>},
            #{max_payload => -1},
            #{headers => 1},
            #{host => "localhost"},
            #{host => <<255>>},
            #{host => undefined},
            #{connect_urls => [<<"a:1">>]}
        ]
    ].

names_test() ->
    ?assertEqual(<<"m/a/b">>, ?NIF:topic(<<"a.b">>, <<"m/">>)),
    ?assertEqual(<<"m/a.b">>, ?NIF:topic(<<"a//b">>, <<"m/">>)),
    ?assertEqual(invalid, ?NIF:topic(<<"a..b">>, <<>>)),
    ?assertEqual(invalid, ?NIF:topic(<<0>>, <<>>)),
    ?assertEqual(invalid, ?NIF:topic(binary:copy(<<"x">>, 65535), <<"m">>)),
    ?assertEqual(<<"m/a/+/#">>, ?NIF:filter(<<"a.*.>">>, <<"m/">>)),
    ?assertEqual(invalid, ?NIF:filter(<<"a.>.b">>, <<>>)),
    ?assertEqual(<<"a.b">>, ?NIF:subject(<<"m/a/b">>, <<"m/">>)),
    ?assertEqual(<<"/.a%20b">>, ?NIF:subject(<<"/a b">>, <<>>)),
    ?assertEqual(<<"a%01.*.>">>, ?NIF:canonical_subject(<<"a", 1, ".*.>">>)),
    ?assertEqual(<<>>, ?NIF:canonical_subject(<<>>)),
    ?assertEqual(<<"a%01">>, ?NIF:published_subject(<<"a", 1>>)),
    ?assertEqual(<<"secret.x">>, ?NIF:published_subject(<<"_MQTT.tc2VjcmV0L3g.c">>)),
    ?assertEqual(<<"q">>, ?NIF:share_name(<<"q">>)),
    ?assertEqual(<<"q%2Fa%FF">>, ?NIF:share_name(<<"q/a", 255>>)),
    ?assertEqual(invalid, ?NIF:share_name(binary:copy(<<"q">>, 65536))),
    ?assertEqual(<<"\"a\\\"\\x01\\xff\"">>, ?NIF:quote(<<"a\"", 1, 255>>)).

matches_test() ->
    ?assertEqual(true, ?NIF:subject_matches(<<"a.>">>, <<"a.b">>)),
    ?assertEqual(false, ?NIF:subject_matches(<<"a.>">>, <<"a">>)),
    ?assertEqual(true, ?NIF:topic_matches(<<"a/#">>, <<"a">>)),
    ?assertEqual(false, ?NIF:topic_matches(<<"#">>, <<"$SYS">>)),
    ?assertEqual(true, ?NIF:valid_publish_subject(<<"a.b*">>)),
    ?assertEqual(false, ?NIF:valid_publish_subject(<<"a.*">>)).

header_properties_test() ->
    Exact = <<"NATS/1.0 503 No\r\nA: b\r\ncontent-type: t\r\nA: c\r\n\r\n">>,
    {Pairs, <<"t">>, true} = ?NIF:header_properties(Exact),
    ?assertEqual(
        [
            {<<"Nats-Status">>, <<"503 No">>},
            {<<"A">>, <<"b">>},
            {<<"content-type">>, <<"t">>},
            {<<"A">>, <<"c">>}
        ],
        Pairs
    ),
    Frame = encode([#message{
        topic = <<"a">>,
        sids = [<<"1">>],
        headers = {properties, Pairs, <<"t">>},
        payload = <<>>
    }]),
    ?assertMatch({_, _}, binary:match(Frame, Exact)),
    ?assertEqual(
        {[{<<"A">>, <<"b">>}], undefined, false},
        ?NIF:header_properties(<<"NATS/1.0\r\nA:b\r\n\r\n">>)
    ),
    ?assertEqual({[], undefined, false}, ?NIF:header_properties(<<"garbage">>)).

badarg_test_() ->
    [
        ?_assertError(badarg, apply(?NIF, Function, Arguments))
     || {Function, Arguments} <- [
            {topic, [a, <<>>]},
            {topic, [<<"a">>, undefined]},
            {filter, ["a", <<>>]},
            {subject, [<<"a">>, "m"]},
            {canonical_subject, [undefined]},
            {published_subject, [undefined]},
            {share_name, [undefined]},
            {subject_matches, [<<"a">>, a]},
            {topic_matches, [a, <<"a">>]},
            {valid_publish_subject, [a]},
            {header_properties, [undefined]},
            {quote, [a]},
            {reply_subject, [a, <<>>]},
            {nkey_role, [a]},
            {nkey_verify, [<<>>, <<>>, a]},
            {jwt_decode, ["a"]},
            {jwt_source_allowed, [a, <<>>]},
            {jwt_source_allowed, [[a], <<>>]},
            {jwt_source_allowed, [[<<"a">> | <<"b">>], <<>>]},
            {jwt_hours, [[{<<>>}], <<>>, 0, 0]},
            {jwt_hours, [[], <<255>>, 0, 0]},
            {jwt_hours, [[], <<>>, 1 bsl 31, 0]},
            {jwt_hours, [[], <<>>, 0, 1 bsl 63]},
            {bcrypt_verify, [<<>>, a]},
            {bcrypt_cost, [a]}
        ]
    ].

%% 71 bytes and a NUL are all that bcrypt looks at.
bcrypt_test_() ->
    [
        ?_test(begin
            Hash = nats_gateway_hashes:bcrypt(Password, Cost),
            ?assertEqual(Cost, ?NIF:bcrypt_cost(Hash)),
            ?assert(?NIF:bcrypt_verify(Password, Hash)),
            ?assertNot(?NIF:bcrypt_verify(<<Password/binary, "q">>, Hash)),
            ?assertNot(?NIF:bcrypt_verify(Password, binary:part(Hash, 0, byte_size(Hash) - 1)))
        end)
     || {Password, Cost} <- [{<<>>, 4}, {<<"p">>, 5}, {binary:copy(<<"p">>, 71), 4}]
    ].

%% The same bytes as in the frame, which is what the client answers to.
reply_subject_test_() ->
    [
        ?_test(begin
            Frame = encode([#message{
                topic = <<"a">>,
                sids = [<<"1">>],
                reply = Reply,
                payload = <<>>
            }]),
            Subject = ?NIF:reply_subject(Reply, <<>>),
            ?assertEqual(<<"MSG a 1 ", Subject/binary, " 0\r\n\r\n">>, Frame)
        end)
     || Reply <- [
            {subject, <<"r">>},
            {subject, <<"r s">>},
            {topic, <<"r/s">>, undefined},
            {topic, <<"r//s t">>, undefined},
            {topic, <<"r/s">>, <<"correlation">>}
        ]
    ] ++ [?_assertEqual(<<>>, ?NIF:reply_subject(undefined, <<>>))].

not_text_is_no_credential_test() ->
    ?assertEqual(invalid, ?NIF:nkey_role(<<255>>)),
    ?assertNot(?NIF:nkey_verify(<<255>>, <<>>, <<>>)),
    ?assertNot(?NIF:nkey_verify(nats_gateway_credentials:public(user), <<>>, <<255>>)),
    ?assertMatch({error, _}, ?NIF:jwt_decode(<<255>>)),
    ?assertNot(?NIF:jwt_source_allowed([<<"0.0.0.0/0">>], <<"nowhere">>)),
    ?assert(?NIF:jwt_source_allowed([], <<"nowhere">>)),
    ?assertNot(?NIF:bcrypt_verify(<<255>>, <<255>>)),
    ?assertEqual(invalid, ?NIF:bcrypt_cost(<<255>>)).

%% A topic without any byte is none (MQTT 5, 4.7.3); a subscriber to `#' would be sent it.
no_topic_is_empty_test() ->
    Topics = fun(Mountpoint) ->
        {ok, Ops, <<>>, _} = nats_gateway_nif:decode(
            <<"SUB / 1\r\nPUB / 0\r\n\r\nPUB a / 0\r\n\r\n">>,
            #decoder{max_control_line = 4096, max_payload = 1048576, phase = open, mountpoint = Mountpoint}
        ),
        [#sub{
            subject = <<"/">>, filter = Filter
        }, #pub{subject = <<"/">>, topic = Topic}, #pub{reply_topic = Reply}] = Ops,
        [Filter, Topic, Reply]
    end,
    ?assertEqual([invalid, invalid, invalid], Topics(<<>>)),
    ?assertEqual([<<"m/">>, <<"m/">>, <<"m/">>], Topics(<<"m/">>)),
    ?assertEqual(invalid, nats_gateway_nif:topic(<<"/">>, <<>>)).

%% --- The library for a machine ---

platform_test_() ->
    [
        {Machine, ?_assertEqual(Platform, ?NIF:platform(Machine))}
     || {Machine, Platform} <- [
            {"x86_64-pc-linux-gnu", "x86_64-linux-gnu"},
            {"x86_64-unknown-linux-gnu", "x86_64-linux-gnu"},
            {"x86_64-redhat-linux-gnu", "x86_64-linux-gnu"},
            {"x86_64-linux-gnu", "x86_64-linux-gnu"},
            {"aarch64-unknown-linux-gnu", "aarch64-linux-gnu"},
            {"armv7l-unknown-linux-gnueabihf", "armv7l-linux-gnueabihf"},
            {"x86_64-alpine-linux-musl", "x86_64-linux-musl"},
            {"aarch64-apple-darwin23.1.0", "aarch64-apple-darwin23.1.0"},
            {"amd64-portbld-freebsd14.1", "amd64-portbld-freebsd14.1"},
            {"win32", "win32"}
        ]
    ].

choose_platform_test_() ->
    Served = ["aarch64-linux-gnu", "x86_64-linux-gnu"],
    Refused = fun(Machine) ->
        "there is no native library for this machine (" ++ Machine ++
            "), only for aarch64-linux-gnu, x86_64-linux-gnu"
    end,
    [
        ?_assertEqual({ok, "x86_64-linux-gnu"}, ?NIF:choose_platform("x86_64-pc-linux-gnu", Served)),
        ?_assertEqual(
            {ok, "aarch64-linux-gnu"}, ?NIF:choose_platform("aarch64-unknown-linux-gnu", Served)
        ),
        [
            {Machine, ?_assertEqual({error, Refused(Machine)}, ?NIF:choose_platform(Machine, Served))}
         || Machine <- [
                "x86_64-alpine-linux-musl",
                "riscv64-unknown-linux-gnu",
                "i686-pc-linux-gnu",
                "aarch64-apple-darwin23.1.0",
                "win32"
            ]
        ],
        ?_assertEqual(
            {error, "there is no native library, for this machine (x86_64-pc-linux-gnu) or another"},
            ?NIF:choose_platform("x86_64-pc-linux-gnu", [])
        )
    ].

load_error_test_() ->
    Machine = "x86_64-pc-linux-gnu",
    Old =
        "Failed to load NIF library: '/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found "
        "(required by /priv/x86_64-linux-gnu/nats_gateway_nif.so)'",
    Other = "Failed to load NIF library: '/priv/nats_gateway_nif.so: file too short'",
    [
        ?_assertEqual(
            "the C library of this machine (x86_64-pc-linux-gnu) is older than glibc 2.34, "
            "which the native library needs: " ++ Old,
            ?NIF:load_error(Machine, Old)
        ),
        ?_assertEqual(Other, ?NIF:load_error(Machine, Other))
    ].

this_machine_has_its_library_test() ->
    {ok, Library} = ?NIF:library("nats_gateway_nif"),
    Platform = ?NIF:platform(erlang:system_info(system_architecture)),
    ?assertEqual(Platform, filename:basename(filename:dirname(Library))),
    ?assertMatch({error, {not_served, _}}, ?NIF:library("no_such_library")).
