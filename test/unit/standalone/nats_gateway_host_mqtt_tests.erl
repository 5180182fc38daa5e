%% The standalone host against a real Mosquitto (2.0.x), and against a scripted broker for what
%% Mosquitto does not do. The tests named `mosquitto_...' hold what the design relies on.
-module(nats_gateway_host_mqtt_tests).

-include("nats_gateway.hrl").
-include("nats_gateway_mqtt.hrl").
-include_lib("eunit/include/eunit.hrl").

%% for other tests
-export([client/1]).

-define(HOST, nats_gateway_host_mqtt).
-define(CLIENT, nats_gateway_mqtt_client).
-define(WAIT, 5000).

%% -------------------------------------------------------------------------------------------
%% With Mosquitto

mosquitto_test_() ->
    with_mosquitto(
        [
            "allow_anonymous true\n"
            "acl_file ",
            {file, "acl", [
                "topic readwrite #\n"
                "topic readwrite $SRV/#\n"
                "topic deny denied/#\n"
            ]},
            "\n"
        ],
        [
            fun login/1,
            fun host_name/1,
            fun publish_plain/1,
            fun publish_confirmed/1,
            fun publish_requests/1,
            fun unroutable/1,
            fun request_reply/1,
            fun correlation_data/1,
            fun forged_reply_subjects/1,
            fun reply_subject_without_topic/1,
            fun headers/1,
            fun header_block/1,
            fun header_block_of_another/1,
            fun size_of_a_header_block_of_another/1,
            fun header_block_longer_than_a_string/1,
            fun topic_levels/1,
            fun reserved_headers_of_the_client/1,
            fun strings_that_brokers_refuse/1,
            fun mosquitto_overlapping_subscriptions/1,
            fun mosquitto_shared_subscriptions/1,
            fun mosquitto_no_local/1,
            fun mosquitto_echo_order/1,
            fun unsubscribe/1,
            fun resubscribe/1,
            fun resubscribe_many/1,
            fun resubscribe_many_shared/1,
            fun ended_while_subscribed_again/1,
            fun barrier_only_when_needed/1,
            fun confirmed_subscriber/1,
            fun receive_maximum/1,
            fun retained/1,
            fun large_payloads/1,
            fun binary_payloads/1,
            fun many_messages/1,
            fun last_words/1,
            fun mosquitto_taken_over/1,
            fun mountpoint/1,
            fun secrets/1
        ]
    ).

login(Port) ->
    Client = client(Port),
    {ok, #{clientid := ClientId, mountpoint := <<>>, username := undefined}} = login_as(Client),
    ?assertMatch(<<"nats-", _:18/binary>>, ClientId),
    {ok, #{clientid := Other}} = login_as(client(Port)),
    ?assertNotEqual(ClientId, Other).

host_name(Port) ->
    Upstream = (upstream(Port))#{host => "localhost"},
    {ok, _} = login_as(client(Port, #{upstream => Upstream}, #{})).

publish_plain(Port) ->
    Pub = start(Port),
    Sub = start(Port),
    ok = subscribe(Sub, {undefined, <<"t/#">>}),
    ok = barrier(Sub),
    ok = publish(Pub, [pub(<<"t.a">>, <<"1">>), pub(<<"t.b">>, <<>>), pub(<<"u">>, <<"x">>)]),
    ?assertEqual(
        [
            {{undefined, <<"t/#">>}, <<"t/a">>, undefined, undefined, <<"1">>},
            {{undefined, <<"t/#">>}, <<"t/b">>, undefined, undefined, <<>>}
        ],
        deliveries(2, Sub)
    ).

%% Verbose clients learn of every rejection; without no_responders nobody is no rejection.
publish_confirmed(Port) ->
    Pub = start(Port),
    Sub = start(Port),
    ok = subscribe(Sub, {undefined, <<"c/taken">>}),
    ok = barrier(Sub),
    Pubs = [
        pub(<<"c.taken">>, <<"1">>),
        pub(<<"denied.x">>, <<"2">>),
        pub(<<"c.nobody">>, <<"3">>),
        request(<<"c.nobody">>, <<"r">>, <<"4">>),
        request(<<"c.taken">>, <<"r">>, <<"5">>),
        request(<<"denied.x">>, <<"r">>, <<"6">>)
    ],
    ?assertEqual(
        {published, [{2, denied}, {4, no_responders}, {6, denied}]},
        publish(Pub, Pubs, #{confirm => true, no_responders => true})
    ),
    ?assertEqual(
        {published, [{2, denied}, {6, denied}]},
        publish(Pub, Pubs, #{confirm => true, no_responders => false})
    ).

%% Not waited for; the rejections come as events, and only for requests.
publish_requests(Port) ->
    Pub = start(Port),
    ok = publish(
        Pub,
        [
            request(<<"q.nobody">>, <<"_INBOX.1">>, <<"1">>),
            pub(<<"q.nobody">>, <<"2">>),
            request(<<"denied.q">>, <<"_INBOX.2">>, <<"3">>),
            pub(<<"denied.q">>, <<"4">>)
        ],
        #{confirm => false, no_responders => true}
    ),
    ok = barrier(Pub),
    ?assertEqual(
        [
            {publish_rejected, <<"q.nobody">>, <<"_INBOX.1">>, no_responders},
            {publish_rejected, <<"denied.q">>, <<"_INBOX.2">>, denied}
        ],
        events(Pub)
    ),
    ok = publish(Pub, [request(<<"q.nobody">>, <<"_INBOX.1">>, <<>>)]),
    ok = barrier(Pub),
    ?assertEqual([], events(Pub)).

unroutable(Port) ->
    Pub = start(Port),
    Invalid = #pub{subject = <<"a..b">>, topic = invalid, payload = <<>>},
    Request = #pub{subject = <<"a..b">>, topic = invalid, reply_to = <<"r">>, reply_topic = <<"r">>, payload = <<>>},
    Taken = pub(<<"a">>, <<>>),
    ?assertEqual(
        {published, [{3, no_responders}]},
        publish(Pub, [Invalid, Taken, Request], #{confirm => true, no_responders => true})
    ),
    ?assertEqual(
        {rejected, [{2, no_responders}]},
        publish(Pub, [Invalid, Request], #{confirm => false, no_responders => true})
    ),
    ?assertEqual(ok, publish(Pub, [Invalid, Request])),
    ok = barrier(Pub).

request_reply(Port) ->
    Requester = start(Port),
    Service = start(Port),
    ok = subscribe(Service, {<<"q">>, <<"svc">>}),
    ok = barrier(Service),
    ok = subscribe(Requester, {undefined, <<"_INBOX/x/+">>}),
    ok = publish(Requester, [request(<<"svc">>, <<"_INBOX.x.1">>, <<"ask">>)], requests()),
    [{{<<"q">>, <<"svc">>}, <<"svc">>, Reply, undefined, <<"ask">>}] = deliveries(1, Service),
    ?assertEqual({topic, <<"_INBOX/x/1">>, undefined}, Reply),
    ok = publish(Service, [pub(<<"_INBOX.x.1">>, <<"answer">>)]),
    ?assertEqual(
        [{{undefined, <<"_INBOX/x/+">>}, <<"_INBOX/x/1">>, undefined, undefined, <<"answer">>}],
        deliveries(1, Requester)
    ),
    ok = barrier(Requester),
    ?assertEqual([], events(Requester)).

%% Of an MQTT requester, through the service's reply subject, back to it; and where the reply
%% subject of a request is itself such a one.
correlation_data(Port) ->
    Gateway = start(Port),
    Key = {undefined, <<"corr/#">>},
    ok = subscribe(Gateway, Key),
    Topic = {<<"corr/a">>, <<0, 255>>},
    ok = publish(Gateway, [
        #pub{subject = <<"_R.1">>, topic = Topic, payload = <<"1">>},
        #pub{
            subject = <<"corr.b">>,
            topic = <<"corr/b">>,
            reply_to = <<"_R.1">>,
            reply_topic = Topic,
            payload = <<"2">>
        },
        #pub{subject = <<"_R.1">>, topic = Topic, reply_to = <<"r">>, reply_topic = <<"r/t">>, payload = <<"3">>},
        #pub{
            subject = <<"_R.1">>,
            topic = Topic,
            reply_to = <<"_R.2">>,
            reply_topic = {<<"x">>, <<"y">>},
            payload = <<"4">>
        }
    ]),
    ?assertEqual(
        [
            {Key, <<"corr/a">>, undefined, undefined, <<"1">>},
            {Key, <<"corr/b">>, {topic, <<"corr/a">>, <<0, 255>>}, undefined, <<"2">>},
            {Key, <<"corr/a">>, {topic, <<"r/t">>, <<0, 255>>}, undefined, <<"3">>},
            {Key, <<"corr/a">>, {subject, <<"_R.2">>}, undefined, <<"4">>}
        ],
        deliveries(4, Gateway)
    ).

%% Such reply subjects can be made up, and what they stand for can be no topic at all.
forged_reply_subjects(Port) ->
    Gateway = start(Port),
    Key = {undefined, <<"fr">>},
    ok = subscribe(Gateway, Key),
    Long = binary:copy(<<"c">>, 65536),
    Bad = [{<<"a/+">>, <<>>}, {<<>>, <<>>}, {<<"fr">>, Long}, {<<1>>, <<>>}],
    ok = publish(
        Gateway,
        [#pub{subject = <<"_R.1">>, topic = Topic, payload = <<"1">>} || Topic <- Bad] ++
            [#pub{
                subject = <<"fr">>,
                topic = <<"fr">>,
                reply_to = <<"_R.1">>,
                reply_topic = Topic,
                payload = <<"2">>
            } || Topic <- Bad]
    ),
    Delivery = {Key, <<"fr">>, {subject, <<"_R.1">>}, undefined, <<"2">>},
    ?assertEqual(lists:duplicate(4, Delivery), deliveries(4, Gateway)).

reply_subject_without_topic(Port) ->
    Gateway = start(Port),
    Key = {undefined, <<"rs">>},
    ok = subscribe(Gateway, Key),
    Request = fun(ReplyTo, Payload) ->
        #pub{subject = <<"rs">>, topic = <<"rs">>, reply_to = ReplyTo, reply_topic = invalid, payload = Payload}
    end,
    ok = publish(Gateway, [
        Request(<<"a..b">>, <<"1">>),
        Request(<<"é."/utf8>>, <<"2">>),
        %% no MQTT string: the message goes without
        Request(<<255>>, <<"3">>),
        Request(<<1>>, <<"4">>)
    ]),
    ?assertEqual(
        [
            {Key, <<"rs">>, {subject, <<"a..b">>}, undefined, <<"1">>},
            {Key, <<"rs">>, {subject, <<"é."/utf8>>}, undefined, <<"2">>},
            {Key, <<"rs">>, undefined, undefined, <<"3">>},
            {Key, <<"rs">>, undefined, undefined, <<"4">>}
        ],
        deliveries(4, Gateway)
    ).

%% What user properties say exactly travels as these alone.
headers(Port) ->
    Gateway = start(Port),
    Key = {undefined, <<"hd">>},
    ok = subscribe(Gateway, Key),
    Block = <<"NATS/1.0\r\nA: 1\r\na: 2\r\nContent-Type: text/plain\r\nA: 3\r\n\r\n">>,
    ok = publish(Gateway, [pub(<<"hd">>, <<"p">>, Block)]),
    [{Key, <<"hd">>, undefined, Headers, <<"p">>}] = deliveries(1, Gateway),
    ?assertEqual(
        {properties,
            [
                {<<"A">>, <<"1">>},
                {<<"a">>, <<"2">>},
                {<<"Content-Type">>, <<"text/plain">>},
                {<<"A">>, <<"3">>}
            ],
            <<"text/plain">>},
        Headers
    ).

%% What they don't is carried besides, and is what arrives.
header_block(Port) ->
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, <<"hb">>}),
    Blocks = [
        <<"NATS/1.0\r\nA:1\r\n\r\n">>,
        <<"NATS/1.0 408 Timeout\r\nContent-Type:x\r\n\r\n">>,
        <<"NATS/1.0\r\ngarbage\r\n\r\n">>,
        <<"NATS/1.0\r\nA: \tb%41\t", 255, 0, 1, "\r\n\r\n">>
    ],
    ok = publish(Gateway, [pub(<<"hb">>, <<>>, Block) || Block <- Blocks]),
    ?assertEqual(Blocks, [Headers || {_, _, _, Headers, _} <- deliveries(4, Gateway)]).

%% A block that another gateway wrote, or anyone, must look like one; else its properties count.
header_block_of_another(Port) ->
    Other = start(client(Port, #{secret => <<"of another gateway">>}, #{})),
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, <<"ho">>}),
    ok = barrier(Gateway),
    Good = [
        <<"NATS/1.0\r\nA:1\r\n\r\n">>,
        <<"NATS/1.0 408 Request Timeout\r\nA:\t1\r\nA:2\r\n\r\n">>
    ],
    Bad = [
        <<"NATS/1.0\r\nA:1\r\ngarbage\r\n\r\n">>,
        <<"NATS/1.0\r\nA b:1\r\n\r\n">>,
        <<"NATS/1.0\r\nA:1\r\n\r\nB:1\r\n\r\n">>,
        <<"NATS/1.0 x\r\nA:1\r\n\r\n">>,
        <<"NATS/1.0\r\nA:1", 255, "\r\n\r\n">>
    ],
    ok = publish(Other, [pub(<<"ho">>, <<>>, Block) || Block <- Good ++ Bad]),
    Headers = [Headers || {_, _, _, Headers, _} <- deliveries(7, Gateway)],
    ?assertEqual(Good, lists:sublist(Headers, 2)),
    [?assertNot(is_binary(Header)) || Header <- lists:nthtail(2, Headers)].

%% A block of another gateway is looked at like one that is built of properties: 64 KiB, 1000
%% headers.
size_of_a_header_block_of_another(Port) ->
    Other = start(client(Port, #{secret => <<"of another gateway">>}, #{})),
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, <<"hz">>}),
    ok = barrier(Gateway),
    Lines = fun(Count) -> <<"NATS/1.0\r\n", (binary:copy(<<"A:\r\n">>, Count))/binary, "\r\n">> end,
    Long = fun(Size) -> <<"NATS/1.0\r\nA:", (binary:copy(<<"x">>, Size - 16))/binary, "\r\n\r\n">> end,
    Blocks = [Lines(1000), Lines(1001), Lines(100000), Long(65536), Long(65537)],
    ok = publish(Other, [pub(<<"hz">>, <<>>, Block) || Block <- Blocks]),
    Headers = [Headers || {_, _, _, Headers, _} <- deliveries(5, Gateway)],
    ?assertEqual(
        [true, false, false, true, false],
        [Block =:= Header || {Block, Header} <- lists:zip(Blocks, Headers)]
    ),
    %% of its own it takes any
    ok = publish(Gateway, [pub(<<"hz">>, <<>>, Block) || Block <- Blocks]),
    ?assertEqual(Blocks, [Block || {_, _, _, Block, _} <- deliveries(5, Gateway)]).

header_block_longer_than_a_string(Port) ->
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, <<"hl">>}),
    Block = <<"NATS/1.0\r\nA:", (binary:copy(<<"%">>, 200000))/binary, "\r\nB:1\r\n\r\n">>,
    ok = publish(Gateway, [pub(<<"hl">>, <<"p">>, Block)]),
    ?assertMatch([{_, _, _, Block, <<"p">>}], deliveries(1, Gateway)).

reserved_headers_of_the_client(Port) ->
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, <<"rh">>}),
    Blocks = [
        <<"NATS/1.0\r\nNats-Reply-To: x\r\nA: b\r\n\r\n">>,
        <<"NATS/1.0\r\nNats-Header-Block: NATS/1.0%0D%0A%0D%0A\r\n\r\n">>
    ],
    ok = publish(Gateway, [pub(<<"rh">>, <<>>, Block) || Block <- Blocks]),
    ?assertEqual(
        [{undefined, Block} || Block <- Blocks],
        [{Reply, Headers} || {_, _, Reply, Headers, _} <- deliveries(2, Gateway)]
    ).

%% Mosquitto takes one more, and ends the connection at two more.
topic_levels(Port) ->
    Topic = fun(Levels) -> iolist_to_binary(lists:join($/, lists:duplicate(Levels, "l"))) end,
    Pub = fun(Levels) -> #pub{subject = <<"l">>, topic = Topic(Levels), payload = <<>>} end,
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, Topic(200)}),
    ok = subscribe(Gateway, {<<"g">>, Topic(198)}),
    too_many_tokens = subscribe(Gateway, {undefined, Topic(201)}),
    too_many_tokens = subscribe(Gateway, {<<"g">>, Topic(199)}),
    {rejected, [{2, denied}]} = publish(Gateway, [Pub(200), Pub(201), Pub(1)]),
    ?assertMatch([{_, _, undefined, undefined, <<>>}], deliveries(1, Gateway)),
    Deep = start(client(Port, #{upstream => (upstream(Port))#{max_topic_levels => 201}}, #{})),
    ok = subscribe(Deep, {undefined, Topic(201)}),
    ok = publish(Deep, [Pub(201)]),
    ?assertMatch([_], deliveries(1, Deep)).

%% Mosquitto closes on control characters in any string. The rest of the batch is not harmed.
strings_that_brokers_refuse(Port) ->
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, <<"sb/#">>}),
    Block = <<"NATS/1.0\r\nTab: a\tb\r\nContent-Type: a", 7, "b\r\n\r\n">>,
    {rejected, [{5, no_responders}]} = publish(
        Gateway,
        [
            pub(<<"sb.1">>, <<"1">>),
            pub(<<"sb.2">>, <<"2">>, Block),
            #pub{
                subject = <<"sb.3">>,
                topic = <<"sb/3">>,
                reply_to = <<"r", 1>>,
                reply_topic = <<"r", 1>>,
                payload = <<"3">>
            },
            pub(<<"sb.", 1>>, <<"4">>),
            request(<<"sb.", 2>>, <<"r">>, <<"5">>)
        ],
        requests()
    ),
    ok = subscribe(Gateway, {undefined, <<"sb/4">>}),
    denied = subscribe(Gateway, {undefined, <<"sb", 7>>}),
    Key = {undefined, <<"sb/#">>},
    ?assertEqual(
        [
            {Key, <<"sb/1">>, undefined, undefined, <<"1">>},
            {Key, <<"sb/2">>, undefined, Block, <<"2">>},
            {Key, <<"sb/3">>, undefined, undefined, <<"3">>}
        ],
        deliveries(3, Gateway)
    ).

%% A copy for each subscription, each with that one's identifier, also of one publish, also where
%% plain and shared ones overlap, and also with allow_duplicate_messages false.
mosquitto_overlapping_subscriptions(Port) ->
    Gateway = start(Port),
    Keys = [
        {undefined, <<"ov/#">>},
        {undefined, <<"ov/+/c">>},
        {undefined, <<"ov/b/c">>},
        {<<"g">>, <<"ov/b/c">>},
        {<<"g">>, <<"ov/#">>},
        {<<"h">>, <<"ov/#">>}
    ],
    [ok = subscribe(Gateway, Key) || Key <- Keys],
    ok = publish(Gateway, [pub(<<"ov.b.c">>, <<"1">>), pub(<<"ov.b.d">>, <<"2">>)]),
    Got = [{Payload, Key} || {Key, _, _, _, Payload} <- deliveries(9, Gateway)],
    ?assertEqual(
        lists:sort([{<<"1">>, Key} || Key <- Keys] ++ [{<<"2">>, {Share, <<"ov/#">>}} ||
            Share <- [undefined, <<"g">>, <<"h">>]]),
        lists:sort(Got)
    ),
    ok = barrier(Gateway),
    ?assertEqual([], events(Gateway)).

%% One member of a group gets each message; the identifier is the member's own.
mosquitto_shared_subscriptions(Port) ->
    Key = {<<"g">>, <<"sh/+">>},
    Members = [start(Port) || _ <- [1, 2, 3]],
    [ok = subscribe(Member, Key) || Member <- Members],
    [ok = barrier(Member) || Member <- Members],
    Pub = start(Port),
    ok = publish(Pub, [pub(<<"sh.a">>, integer_to_binary(N)) || N <- lists:seq(1, 30)]),
    ok = barrier(Pub),
    %% Each member gets its turn, and the broker handles one after the other.
    Got = [[{K, P} || {K, _, _, _, P} <- deliveries(10, Member)] || Member <- Members],
    ?assertEqual(
        lists:sort([{Key, integer_to_binary(N)} || N <- lists:seq(1, 30)]),
        lists:sort(lists:append(Got))
    ).

%% Own messages don't come back to plain subscriptions; yet it is not said that nobody took them
%% (0x10).
mosquitto_no_local(Port) ->
    Gateway = start(Port),
    Options = #{confirm => false, no_local => true},
    ok = subscribe(Gateway, {undefined, <<"nl">>}, Options),
    %% Asked for on a shared one it would be a protocol error.
    ok = subscribe(Gateway, {<<"g">>, <<"nls">>}, Options),
    ?assertEqual(
        {published, []},
        publish(
            Gateway,
            [request(<<"nl">>, <<"r">>, <<"1">>), request(<<"nls">>, <<"r">>, <<"2">>)],
            #{confirm => true, no_responders => true}
        )
    ),
    Other = start(Port),
    ok = publish(Other, [pub(<<"nl">>, <<"3">>)]),
    ?assertEqual([<<"2">>, <<"3">>], [P || {_, _, _, _, P} <- deliveries(2, Gateway)]).

%% The echo of a message, its PUBACK, and the PINGRESP that was asked for after it.
mosquitto_echo_order(Port) ->
    Gateway = start(Port),
    Key = {undefined, <<"eo">>},
    ok = subscribe(Gateway, Key),
    ?assertEqual(
        {published, [{2, no_responders}]},
        publish(
            Gateway,
            [pub(<<"eo">>, <<"1">>), request(<<"eo.no">>, <<"r">>, <<>>), pub(<<"eo">>, <<"2">>)],
            #{confirm => true, no_responders => true}
        )
    ),
    ?assertEqual([<<"1">>, <<"2">>], [P || {_, _, _, _, P} <- delivered(events(Gateway))]),
    ok = publish(Gateway, [pub(<<"eo">>, <<"3">>)]),
    ok = barrier(Gateway),
    ?assertEqual([<<"3">>], [P || {_, _, _, _, P} <- delivered(events(Gateway))]).

%% What was under way still comes, and nothing after the broker has confirmed.
unsubscribe(Port) ->
    Gateway = start(Port),
    Key = {undefined, <<"us">>},
    ok = subscribe(Gateway, Key),
    ok = publish(Gateway, [pub(<<"us">>, <<"1">>)]),
    ok = unsubscribe_key(Gateway, Key),
    ok = unsubscribe_key(Gateway, Key),
    ok = publish(Gateway, [pub(<<"us">>, <<"2">>)]),
    ok = barrier(Gateway),
    ?assertMatch(
        [{deliver, [{Key, _, _, _, <<"1">>}]}, {unsubscribed, Key}], events(Gateway)
    ),
    ok = subscribe(Gateway, Key),
    ok = publish(Gateway, [pub(<<"us">>, <<"3">>)]),
    ?assertMatch([{Key, _, _, _, <<"3">>}], deliveries(1, Gateway)).

%% With another no-local option: replaced, not doubled.
resubscribe(Port) ->
    Gateway = start(Port),
    Key = {undefined, <<"re">>},
    ok = subscribe(Gateway, Key),
    ok = publish(Gateway, [pub(<<"re">>, <<"1">>)]),
    {subscribed_again, []} = subscribe_again(Gateway, [Key], #{confirm => false, no_local => true}),
    ok = publish(Gateway, [pub(<<"re">>, <<"2">>)]),
    {subscribed_again, []} = subscribe_again(Gateway, [Key], #{confirm => true, no_local => false}),
    ok = publish(Gateway, [pub(<<"re">>, <<"3">>)]),
    ok = barrier(Gateway),
    ?assertEqual([<<"1">>, <<"3">>], [P || {_, _, _, _, P} <- delivered(events(Gateway))]).

%% More than may be without an answer at once; what is shared has no option that could change, and
%% what the broker refuses is told.
resubscribe_many(Port) ->
    Gateway = start(Port),
    Keys = [{undefined, <<"rm/", (integer_to_binary(N))/binary>>} || N <- lists:seq(1, 5000)],
    Shared = {<<"q">>, <<"rm/1">>},
    Denied = {undefined, <<"$share/rm">>},
    [ok = subscribe(Gateway, Key) || Key <- [Shared | Keys]],
    Local = #{confirm => false, no_local => true},
    ?assertEqual(
        {subscribed_again, [{Denied, denied}]},
        subscribe_again(Gateway, [Denied, Shared | Keys], Local)
    ),
    ok = publish(Gateway, [pub(<<"rm.1">>, <<>>), pub(<<"rm.5000">>, <<>>)]),
    ok = barrier(Gateway),
    ?assertMatch([{Shared, _, _, _, _}], delivered(events(Gateway))),
    ?assertEqual(now, subscribe_again(Gateway, [Shared], #{confirm => false, no_local => false})).

%% The broker need not be asked for any of the first ones.
resubscribe_many_shared(Port) ->
    Gateway = start(Port),
    Shared = [{<<"q">>, <<"rs/", (integer_to_binary(N))/binary>>} || N <- lists:seq(1, 3000)],
    Plain = {undefined, <<"rs/1">>},
    [ok = subscribe(Gateway, Key) || Key <- [Plain | Shared]],
    ok = barrier(Gateway),
    Local = #{confirm => false, no_local => true},
    ?assertEqual(now, subscribe_again(Gateway, Shared, Local)),
    ?assertEqual({subscribed_again, []}, subscribe_again(Gateway, Shared ++ [Plain], Local)),
    ok = publish(Gateway, [pub(<<"rs.1">>, <<>>)]),
    ok = barrier(Gateway),
    ?assertMatch([{{<<"q">>, _}, _, _, _, _}], delivered(events(Gateway))).

%% Those whose turn is still to come are not asked for.
ended_while_subscribed_again(Port) ->
    Gateway = start(Port),
    Keys = [{undefined, <<"ea/", (integer_to_binary(N))/binary>>} || N <- lists:seq(1, 5000)],
    [ok = subscribe(Gateway, Key) || Key <- Keys],
    ok = barrier(Gateway),
    First = lists:nth(1, Keys),
    Last = lists:last(Keys),
    wait = call(Gateway, fun(Host) ->
        {wait, Waiting} = ?HOST:subscribe_again(Keys, #{confirm => false, no_local => false}, Host),
        {wait, lists:foldl(fun ?HOST:unsubscribe/2, Waiting, [First, Last])}
    end),
    {subscribed_again, []} = take(Gateway, fun(Event) -> element(1, Event) =:= subscribed_again end),
    ok = publish(Gateway, [pub(<<"ea.1">>, <<>>), pub(<<"ea.2">>, <<>>), pub(<<"ea.5000">>, <<>>)]),
    ok = barrier(Gateway),
    ?assertMatch([{{undefined, <<"ea/2">>}, _, _, _, _}], delivered(events(Gateway))).

barrier_only_when_needed(Port) ->
    Gateway = start(Port),
    %% nothing was sent: nothing to wait for
    ?assertEqual(now, call(Gateway, fun barrier_call/1)),
    ok = subscribe(Gateway, {undefined, <<"ba">>}),
    ?assertEqual(wait, call(Gateway, fun barrier_call/1)),
    [barrier] = await(Gateway, barrier),
    ?assertEqual(now, call(Gateway, fun barrier_call/1)),
    Key = {undefined, <<"ba">>},
    ok = unsubscribe_key(Gateway, Key),
    ?assertEqual(wait, call(Gateway, fun barrier_call/1)),
    [{unsubscribed, Key}, barrier] = await(Gateway, barrier).

%% QoS 1 both ways, beyond Mosquitto's 20 messages in flight: acknowledged, in order, all before
%% the barrier.
confirmed_subscriber(Port) ->
    Gateway = start(Port),
    Confirm = #{confirm => true, no_local => false},
    {subscribed, ok} = subscribe(Gateway, {undefined, <<"cs">>}, Confirm),
    Payloads = [integer_to_binary(N) || N <- lists:seq(1, 300)],
    {published, []} =
        publish(
            Gateway, [pub(<<"cs">>, Payload) || Payload <- Payloads], #{
                confirm => true, no_responders => false
            }
        ),
    ok = barrier(Gateway),
    ?assertEqual(Payloads, [P || {_, _, _, _, P} <- delivered(events(Gateway))]).

%% Mosquitto takes 20 at a time: a batch with more requests waits, in order with what is between.
receive_maximum(Port) ->
    Gateway = start(Port),
    Sub = start(Port),
    ok = subscribe(Sub, {undefined, <<"rm">>}),
    ok = barrier(Sub),
    Pubs = [
        case N rem 3 of
            0 -> pub(<<"rm">>, integer_to_binary(N));
            _ -> request(<<"rm">>, <<"r">>, integer_to_binary(N))
        end
     || N <- lists:seq(1, 500)
    ],
    ?assertEqual(ok, publish(Gateway, Pubs, requests())),
    ?assertEqual(
        [integer_to_binary(N) || N <- lists:seq(1, 500)],
        [P || {_, _, _, _, P} <- deliveries(500, Sub)]
    ),
    ok = barrier(Gateway),
    ?assertEqual([], events(Gateway)).

retained(Port) ->
    Seeder = start(Port),
    ok = call(Seeder, fun(Host) ->
        %% a NATS client can't publish a retained message
        Socket = socket(Host),
        Packet =
            #publish{topic = <<"rt">>, payload = <<"old">>, retain = true},
        {gen_tcp:send(Socket, nats_gateway_mqtt_nif:encode([Packet])), Host}
    end),
    ok = subscribe(Seeder, {undefined, <<"x">>}),
    ok = barrier(Seeder),
    Off = start(Port),
    ok = subscribe(Off, {undefined, <<"rt">>}),
    ok = barrier(Off),
    ?assertEqual([], events(Off)),
    On = start(client(Port, #{retained_on_subscribe => true}, #{})),
    ok = subscribe(On, {undefined, <<"rt">>}),
    ok = barrier(On),
    ?assertMatch([{_, <<"rt">>, _, _, <<"old">>}], delivered(events(On))).

large_payloads(Port) ->
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, <<"lp">>}),
    Payloads = [crypto:strong_rand_bytes(Size) || Size <- [1023, 1024, 4095, 4096, 65536, 1048576]],
    ok = publish(Gateway, [pub(<<"lp">>, Payload) || Payload <- Payloads]),
    ?assert(Payloads =:= [P || {_, _, _, _, P} <- deliveries(6, Gateway)]).

binary_payloads(Port) ->
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, <<"bp">>}),
    Payloads = [<<>>, <<0>>, <<255, 254>>, <<"\r\n">>, list_to_binary(lists:seq(0, 255))],
    ok = publish(Gateway, [pub(<<"bp">>, Payload) || Payload <- Payloads]),
    ?assertEqual(Payloads, [P || {_, _, _, _, P} <- deliveries(5, Gateway)]).

many_messages(Port) ->
    Pub = start(Port),
    Sub = start(Port),
    ok = subscribe(Sub, {undefined, <<"mm/#">>}),
    ok = barrier(Sub),
    Payload = binary:copy(<<"x">>, 100),
    [
        ok = publish(Pub, [
            pub(<<"mm.", (integer_to_binary(N))/binary>>, Payload)
         || N <- lists:seq(Batch * 500 + 1, Batch * 500 + 500)
        ])
     || Batch <- lists:seq(0, 19)
    ],
    ok = barrier(Pub),
    Topics = [Topic || {_, Topic, _, _, _} <- deliveries(10000, Sub)],
    ?assertEqual([<<"mm/", (integer_to_binary(N))/binary>> || N <- lists:seq(1, 10000)], Topics).

%% A client that publishes and is gone: what it said arrives, although it reads nothing more.
last_words(Port) ->
    Sub = start(Port),
    ok = subscribe(Sub, {undefined, <<"lw">>}),
    ok = barrier(Sub),
    Gateway = start(Port),
    ok = subscribe(Gateway, {undefined, <<"lw">>}),
    Payloads = [<<(integer_to_binary(N))/binary, 0:8000>> || N <- lists:seq(1, 2000)],
    ok = publish(Gateway, [pub(<<"lw">>, Payload) || Payload <- Payloads]),
    {Microseconds, ok} = timer:tc(fun() -> stop(Gateway) end),
    ?assert(Microseconds < 1000000),
    ?assert(Payloads =:= [P || {_, _, _, _, P} <- deliveries(2000, Sub)]).

%% The same client id twice: the older one has to go, and is not told why.
mosquitto_taken_over(Port) ->
    Client = client(Port, #{clientinfo_override => #{clientid => <<"one">>}}, #{}),
    First = start(Client),
    Second = start(Client),
    ?assertEqual([{close, upstream_lost}], await(First, {close, upstream_lost})),
    ok = subscribe(Second, {undefined, <<"to">>}),
    ok = barrier(Second),
    timer:sleep(50),
    ?assertEqual([], events(First)).

mountpoint(Port) ->
    Override = #{clientid => <<"c-${Packet.name}">>},
    Config = #{mountpoint => <<"m/${clientid}/">>, clientinfo_override => Override},
    {ok, Session} = login_as(client(Port, Config, #{name => <<"n1">>})),
    ?assertMatch(#{mountpoint := <<"m/c-n1/">>, clientid := <<"c-n1">>}, Session),
    [
        ?assertEqual(
            {error, authorization_violation}, login_as(client(Port, Config, #{name => Name}))
        )
     || Name <- [<<"+">>, <<"#">>, <<"a", 0>>, <<"a\n">>]
    ].

%% Neither what is kept nor what is logged on a crash has the password.
secrets(Port) ->
    Pid = start(client(Port, #{}, #{user => <<"u">>, pass => <<"s3cret">>})),
    State = call(Pid, fun(Host) -> {Host, Host} end),
    ?assertEqual(nomatch, binary:match(term_to_binary(State), <<"s3cret">>)).

%% -------------------------------------------------------------------------------------------
%% With a Mosquitto that knows its users

authentication_test_() ->
    with_mosquitto(
        [
            "allow_anonymous false\n"
            "plugin ",
            {plugin, "mosquitto_dynamic_security.so"},
            "\nplugin_opt_config_file ",
            {file, "users.json", users()},
            "\n"
        ],
        [
            fun credentials/1,
            fun mosquitto_subscribe_denied/1,
            fun credentials_of_the_gateway/1
        ]
    ).

users() ->
    %% mosquitto_ctrl's format: base64 of salt, and of PBKDF2-HMAC-SHA512 of the password
    Salt = <<"0123456789ab">>,
    Hash = crypto:pbkdf2_hmac(sha512, <<"right">>, Salt, 101, 64),
    [
        "{\"defaultACLAccess\":{\"publishClientSend\":false,\"publishClientReceive\":true,"
        "\"subscribe\":false,\"unsubscribe\":true},"
        "\"clients\":[{\"username\":\"joe\",\"password\":\"",
        base64:encode(Hash),
        "\",\"salt\":\"",
        base64:encode(Salt),
        "\",\"iterations\":101,\"roles\":[{\"rolename\":\"r\"}]}],"
        "\"roles\":[{\"rolename\":\"r\",\"acls\":["
        "{\"acltype\":\"publishClientSend\",\"topic\":\"may/#\",\"allow\":true},"
        "{\"acltype\":\"subscribePattern\",\"topic\":\"may/#\",\"allow\":true}]}]}"
    ].

credentials(Port) ->
    Login = fun(Fields) -> login_as(client(Port, #{}, Fields)) end,
    ?assertMatch({ok, #{username := <<"joe">>}}, Login(#{user => <<"joe">>, pass => <<"right">>})),
    Refused = {refused, authorization_violation},
    ?assertEqual(Refused, Login(#{user => <<"joe">>, pass => <<"wrong">>})),
    ?assertEqual(Refused, Login(#{user => <<"joe">>})),
    ?assertEqual(Refused, Login(#{user => <<"jim">>, pass => <<"right">>})),
    ?assertEqual(Refused, Login(#{auth_token => <<"right">>})),
    ?assertEqual(Refused, Login(#{})).

mosquitto_subscribe_denied(Port) ->
    Gateway = start(client(Port, #{}, #{user => <<"joe">>, pass => <<"right">>})),
    Confirm = #{confirm => true, no_local => false},
    ?assertEqual({subscribed, ok}, subscribe(Gateway, {undefined, <<"may/+">>}, Confirm)),
    ?assertEqual({subscribed, denied}, subscribe(Gateway, {undefined, <<"not">>}, Confirm)),
    ok = subscribe(Gateway, {undefined, <<"not">>}),
    ok = subscribe(Gateway, {undefined, <<"may/#">>}),
    ok = barrier(Gateway),
    ?assertEqual([{subscribe_rejected, {undefined, <<"not">>}, denied}], events(Gateway)),
    ?assertEqual(
        {published, [{2, denied}]},
        publish(Gateway, [pub(<<"may.x">>, <<"1">>), pub(<<"not">>, <<"2">>)], #{
            confirm => true, no_responders => false
        })
    ),
    ?assertEqual(
        [{undefined, <<"may/#">>}, {undefined, <<"may/+">>}],
        lists:sort([Key || {Key, _, _, _, _} <- delivered(events(Gateway))])
    ).

%% The gateway's own account, whatever the client says.
credentials_of_the_gateway(Port) ->
    Override = #{username => <<"joe">>, password => <<"${Packet.auth_token}">>},
    Config = #{clientinfo_override => Override},
    ?assertMatch(
        {ok, #{username := <<"joe">>}}, login_as(client(Port, Config, #{auth_token => <<"right">>}))
    ),
    ?assertEqual(
        {refused, authorization_violation},
        login_as(client(Port, Config, #{auth_token => <<"wrong">>}))
    ).

%% -------------------------------------------------------------------------------------------
%% With a scripted broker

%% Whether the broker is there is one question for all who come, and those who have not logged in
%% have no connection to it.
who_is_there_costs_the_broker_one_connection_test() ->
    {ok, Server} = nats_gateway_upstream:start_link(),
    {Listen, Port} = listen(),
    Prepare = fun() -> {ok, _} = ?HOST:prepare(client(Port)) end,
    Clients = [spawn_monitor(Prepare) || _ <- lists:seq(1, 300)],
    [
        receive
            {'DOWN', Ref, process, _, Reason} -> ?assertEqual(normal, Reason)
        end
     || {_, Ref} <- Clients
    ],
    {ok, Probe} = gen_tcp:accept(Listen, ?WAIT),
    ?assertEqual({error, closed}, gen_tcp:recv(Probe, 0, ?WAIT)),
    ?assertEqual({error, timeout}, gen_tcp:accept(Listen, 0)),
    ok = gen_tcp:close(Listen),
    ok = gen_server:stop(Server).

without_a_broker_nobody_is_greeted_test() ->
    {ok, Server} = nats_gateway_upstream:start_link(),
    Port = free_port(),
    ?assertEqual({error, upstream_lost}, ?HOST:prepare(client(Port))),
    ?assertEqual({error, upstream_lost}, ?HOST:connect(client(Port))),
    ok = gen_server:stop(Server).

no_upstream_test() ->
    Client = client(free_port()),
    {Microseconds, Outcome} = timer:tc(fun() -> login_as(Client) end),
    ?assertEqual({error, upstream_lost}, Outcome),
    ?assert(Microseconds < 1000000).

silent_upstream_test() ->
    {Listen, Port} = listen(),
    {Microseconds, Outcome} = timer:tc(fun() -> login_as(impatient(Port)) end),
    ?assertEqual({refused, upstream_lost}, Outcome),
    ?assert(Microseconds > 200000 andalso Microseconds < 1000000),
    ok = gen_tcp:close(Listen).

refusals_test_() ->
    [
        {integer_to_list(Reason, 16),
            ?_assertEqual({refused, Expected}, answered(<<16#20, 3, 0, Reason, 0>>))}
     || {Reason, Expected} <- [
            {16#80, upstream_lost},
            {16#84, upstream_lost},
            {16#85, authorization_violation},
            {16#86, authorization_violation},
            {16#87, authorization_violation},
            {16#88, upstream_lost},
            {16#89, upstream_lost},
            {16#8A, authorization_violation},
            {16#8C, authorization_violation},
            {16#97, upstream_lost},
            {16#9C, upstream_lost},
            {16#9D, upstream_lost},
            {16#9F, upstream_lost}
        ]
    ].

no_connack_test_() ->
    [
        ?_assertEqual({refused, upstream_lost}, answered(Bytes))
     || Bytes <- [
            %% a broker of MQTT 3.1.1 refuses the version
            <<16#20, 2, 0, 1>>,
            <<"HTTP/1.1 400 Bad Request\r\n\r\n">>,
            <<16#D0, 0>>,
            <<16#40, 2, 0, 1>>,
            <<16#E0, 1, 16#82>>,
            close
        ]
    ].

answered(Bytes) ->
    {Listen, Port} = listen(),
    Pid = spawn_link(fun() -> driver(client(Port)) end),
    {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
    <<16#10, _/binary>> = packet(Socket),
    case Bytes of
        close -> ok = gen_tcp:close(Socket);
        _ -> ok = gen_tcp:send(Socket, Bytes)
    end,
    Outcome = call(Pid, outcome),
    ?assertEqual([], events(Pid)),
    ok = stop(Pid),
    ok = gen_tcp:close(Listen),
    Outcome.

%% Who has shown the gateway a password or a signature has a name for the broker, and no more.
connect_packet_of_a_login_test_() ->
    Identity = #{
        method => jwt,
        username => <<"UKEY">>,
        nkey => <<"UKEY">>,
        name => <<"ann">>,
        account => <<"AKEY">>,
        max_payload => infinity,
        expires => {5, user_authentication_expired}
    },
    Sent = fun(Override) ->
        Client = fun(Port) ->
            Config = #{clientinfo_override => maps:merge(#{clientid => <<"id">>}, Override)},
            Fields = #{user => <<"u">>, pass => <<"p">>, auth_token => <<"t">>, jwt => <<"j">>},
            (client(Port, Config, Fields))#{login => Identity}
        end,
        {Pid, Socket, <<16#10, _, Connect/binary>>} = fake(Client, <<>>),
        ok = over(Pid, Socket),
        <<0, 4, "MQTT", 5, Flags, _:16, 0, 0, 2, "id", Credentials/binary>> = Connect,
        {Flags, Credentials}
    end,
    [
        ?_assertEqual({16#82, <<0, 4, "UKEY">>}, Sent(#{})),
        ?_assertEqual(
            {16#C2, <<0, 8, "AKEY-ann", 0, 3, "jwt">>},
            Sent(#{
                username => <<"${Login.account}-${Login.name}">>, password => <<"${Login.method}">>
            })
        ),
        ?_assertEqual(
            {16#C2, <<0, 2, "gw", 0, 1, "p">>},
            Sent(#{username => <<"gw">>, password => <<"${Packet.pass}">>})
        ),
        %% what is no text, and what is not there
        ?_assertEqual(
            {16#82, <<0, 1, "x">>}, Sent(#{username => <<"x${Login.expires}${Login.rules}">>})
        )
    ].

%% What the client gave is what the broker gets.
connect_packet_test_() ->
    Name = <<0, 4, "MQTT", 5>>,
    Sent = fun(Override, Fields) ->
        Client = fun(Port) ->
            Ids = #{clientid => <<"id">>},
            client(Port, #{clientinfo_override => maps:merge(Ids, Override)}, Fields)
        end,
        {Pid, Socket, <<16#10, _, Connect/binary>>} = fake(Client, <<>>),
        ok = over(Pid, Socket),
        Connect
    end,
    %% What the broker does not send because of a Maximum Packet Size is lost without a trace.
    Properties = <<0>>,
    [
        ?_assertEqual(
            <<Name/binary, 2, 60:16, Properties/binary, 0, 2, "id">>,
            Sent(#{}, #{})
        ),
        ?_assertEqual(
            <<Name/binary, 16#C2, 60:16, Properties/binary, 0, 2, "id", 0, 1, "u", 0, 1, "p">>,
            Sent(#{}, #{user => <<"u">>, pass => <<"p">>, auth_token => <<"t">>})
        ),
        ?_assertEqual(
            <<Name/binary, 16#82, 60:16, Properties/binary, 0, 2, "id", 0, 1, "u">>,
            Sent(#{}, #{user => <<"u">>})
        ),
        ?_assertEqual(
            <<Name/binary, 16#C2, 60:16, Properties/binary, 0, 2, "id", 0, 0, 0, 1, "t">>,
            Sent(#{}, #{auth_token => <<"t">>})
        ),
        ?_assertEqual(
            <<Name/binary, 16#82, 60:16, Properties/binary, 0, 2, "id", 0, 1, "t">>,
            Sent(
                #{username => <<"${Packet.auth_token}">>, password => <<>>},
                #{auth_token => <<"t">>}
            )
        ),
        ?_assertEqual(
            <<Name/binary, 16#82, 60:16, Properties/binary, 0, 1, "n", 0, 6, "true-1">>,
            Sent(
                #{
                    clientid => <<"${Packet.name}">>,
                    username => <<"${Packet.verbose}-${Packet.protocol}">>
                },
                #{name => <<"n">>, verbose => true, protocol => 1}
            )
        )
    ].

disconnected_test_() ->
    [
        {integer_to_list(Reason, 16), fun() ->
            {Pid, Socket} = connected(<<>>),
            ok = gen_tcp:send(Socket, <<16#E0, 1, Reason>>),
            ?assertEqual([{close, Expected}], await(Pid, {close, Expected})),
            ok = gen_tcp:close(Socket),
            closed_for_good(Pid)
        end}
     || {Reason, Expected} <- [
            {0, upstream_lost},
            {16#82, upstream_lost},
            {16#87, authorization_violation},
            {16#8B, upstream_lost},
            {16#8E, kicked},
            {16#98, kicked},
            {16#A0, user_authentication_expired}
        ]
    ].

%% Whoever notices first, there is one event.
closed_test() ->
    {Pid, Socket} = connected(<<>>),
    ok = gen_tcp:close(Socket),
    ?assertEqual([{close, upstream_lost}], await(Pid, {close, upstream_lost})),
    closed_for_good(Pid).

closed_for_good(Pid) ->
    Key = {undefined, <<"a">>},
    ?assertEqual({stop, upstream_lost}, publish(Pid, [pub(<<"a">>, <<>>)])),
    ?assertEqual({stop, upstream_lost}, subscribe(Pid, Key)),
    ?assertEqual(ok, unsubscribe_key(Pid, Key)),
    ?assertEqual(wait, call(Pid, fun barrier_call/1)),
    timer:sleep(50),
    ?assertEqual([], events(Pid)),
    ?assertEqual(ok, stop(Pid)).

%% A callback that can't say that the connection is gone.
lost_while_unsubscribing_test() ->
    lost_in(fun(Pid) -> unsubscribe_key(Pid, {undefined, <<"a">>}) end).

lost_at_a_barrier_test() ->
    lost_in(fun(Pid) -> wait = call(Pid, fun barrier_call/1) end).

lost_in(Act) ->
    {Pid, Socket} = connected(<<>>),
    ok = subscribe(Pid, {undefined, <<"a">>}),
    %% The process must not see the end of the connection before it acts.
    ok = call(Pid, fun(Host) -> {inet:setopts(socket(Host), [{active, false}]), Host} end),
    ok = inet:setopts(Socket, [{linger, {true, 0}}]),
    ok = gen_tcp:close(Socket),
    timer:sleep(50),
    _ = Act(Pid),
    ?assertEqual([{close, upstream_lost}], await(Pid, {close, upstream_lost})),
    timer:sleep(20),
    ?assertEqual([], events(Pid)).

%% A publish finds the end of the connection while the broker's last message waits in the mailbox.
heard_before_a_send_fails_test() ->
    {Pid, Socket} = connected(<<>>),
    ok = subscribe(Pid, {undefined, <<"a">>}),
    Acts = fun(Host) ->
        ok = gen_tcp:send(Socket, <<16#30, 7, 0, 1, "a", 2, 11, 1, "1">>),
        timer:sleep(50),
        ok = inet:setopts(Socket, [{linger, {true, 0}}]),
        ok = gen_tcp:close(Socket),
        timer:sleep(50),
        {error, _} = gen_tcp:send(socket(Host), <<16#C0, 0>>),
        Options = #{confirm => false, no_responders => false},
        {ok, [], NHost} = ?HOST:publish([pub(<<"b">>, <<>>)], Options, Host),
        {ok, [], NHost} = ?HOST:publish([pub(<<"b">>, <<>>)], Options, NHost),
        {ok, NHost}
    end,
    ok = call(Pid, Acts),
    ?assertMatch([{deliver, [_]}, {close, upstream_lost}], await(Pid, {close, upstream_lost})),
    closed_for_good(Pid).

%% Of the host's client, under its transport.
socket(Host) ->
    {tcp, Socket} = element(2, element(2, Host)),
    Socket.

%% The broker is told what is wrong with it.
protocol_errors_test_() ->
    [
        ?_test(begin
            {Pid, Socket} = connected(<<>>),
            ok = gen_tcp:send(Socket, Bytes),
            ?assertEqual([{close, upstream_lost}], await(Pid, {close, upstream_lost})),
            ?assertEqual(<<16#E0, 1, Reason>>, packet(Socket)),
            ?assertEqual({error, closed}, gen_tcp:recv(Socket, 0, ?WAIT))
        end)
     || {Bytes, Reason} <- [
            {<<16#30, 0>>, 16#81},
            {<<16#40, 16#FF, 16#FF, 16#FF, 16#7F>>, 16#95},
            {<<16#20, 3, 0, 0, 0>>, 16#82},
            {<<16#50, 2, 0, 1>>, 16#82},
            {<<16#34, 6, 0, 1, "t", 0, 1, 0>>, 16#82}
        ]
    ].

%% Broken into single bytes, and several packets at once.
chunks_test() ->
    {Pid, Socket} = connected(<<>>),
    Key = {undefined, <<"t">>},
    ok = subscribe(Pid, Key),
    <<16#82, _, Id:16, 2, 11, 1, _/binary>> = packet(Socket),
    Publish = fun(Payload) -> <<16#30, 7, 0, 1, "t", 2, 11, 1, Payload>> end,
    Stream = <<16#90, 4, Id:16, 0, 0, (Publish($a))/binary, (Publish($b))/binary>>,
    [
        begin
            ok = gen_tcp:send(Socket, <<Byte>>),
            timer:sleep(2)
        end
     || <<Byte>> <= Stream
    ],
    Expected = [{Key, <<"t">>, undefined, undefined, <<Byte>>} || Byte <- "ab"],
    ?assertEqual(Expected, deliveries(2, Pid)),
    ok = gen_tcp:send(Socket, [Publish($a), Publish($b)]),
    %% one run of deliveries for a chunk
    ?assertEqual([{deliver, Expected}], await_any(Pid)),
    ok = over(Pid, Socket).

%% A message that is larger than what is taken costs no connection and no other message, at every
%% split of its bytes. It is acknowledged and counted.
too_large_test_() ->
    [{integer_to_list(QoS), fun() -> too_large(QoS) end} || QoS <- [0, 1]].

too_large(QoS) ->
    Client = fun(Port) ->
        client(Port, #{upstream => (upstream(Port))#{max_packet_size => 1024}}, #{})
    end,
    {Pid, Socket, _} = fake(Client, <<>>),
    Key = {undefined, <<"t">>},
    ok = subscribe(Pid, Key),
    <<16#82, _/binary>> = packet(Socket),
    Small = <<16#30, 7, 0, 1, "t", 2, 11, 1, "1">>,
    Id = [<<7:16>> || QoS > 0],
    Publish = fun(Payload) ->
        Body = iolist_to_binary([<<0, 1, "t">>, Id, <<2, 11, 1>>, Payload]),
        Size = byte_size(Body),
        <<3:4, 0:1, QoS:2, 0:1, 1:1, (Size rem 128):7, (Size div 128), Body/binary>>
    end,
    Head = iolist_size(Publish(<<>>)) - 3,
    %% the largest one, and one byte more
    Fits = Publish(binary:copy(<<"x">>, 1024 - Head - 3)),
    1024 = byte_size(Fits),
    Large = Publish(binary:copy(<<"x">>, 1024 - Head - 2)),
    ok = gen_tcp:send(Socket, Fits),
    [_] = deliveries(1, Pid),
    QoS =:= 0 orelse ?assertEqual(<<16#40, 2, 7:16>>, packet(Socket)),
    Stream = <<Small/binary, Large/binary, Small/binary>>,
    Cuts = lists:seq(0, 40) ++ lists:seq(byte_size(Stream) - 20, byte_size(Stream)),
    [
        begin
            <<Before:Cut/binary, After/binary>> = Stream,
            Events = call(Pid, fun(Host) ->
                {First, One} = feed(Before, Host),
                {Second, Two} = feed(After, One),
                {First ++ Second, Two}
            end),
            ?assertEqual([1], [Count || {undeliverable, Count} <- Events]),
            ?assertEqual([<<"1">>, <<"1">>], [P || #delivery{payload = P} <- delivered(Events)]),
            QoS =:= 0 orelse ?assertEqual(<<16#40, 2, 7:16>>, packet(Socket))
        end
     || Cut <- Cuts
    ],
    ok = over(Pid, Socket).

feed(<<>>, Host) ->
    {[], Host};
feed(Bytes, Host) ->
    ?HOST:handle_info({tcp, socket(Host), Bytes}, Host).

%% A copy with all identifiers: one delivery each. Unknown ones are dropped.
several_identifiers_test() ->
    {Pid, Socket} = connected(<<>>),
    Keys = [{undefined, <<"t">>}, {undefined, <<"+">>}, {<<"g">>, <<"t">>}],
    [ok = subscribe(Pid, Key) || Key <- Keys],
    [_, _, _] = [packet(Socket) || _ <- Keys],
    ok = gen_tcp:send(Socket, [
        <<16#30, 13, 0, 1, "t", 8, 11, 1, 11, 9, 11, 3, 11, 1, "1">>,
        <<16#30, 7, 0, 1, "t", 2, 11, 9, "2">>,
        <<16#30, 7, 0, 1, "t", 2, 11, 2, "3">>
    ]),
    [K1, K2, K3] = Keys,
    ?assertEqual(
        [{<<"1">>, K1}, {<<"1">>, K3}, {<<"3">>, K2}],
        [{P, K} || {K, _, _, _, P} <- deliveries(3, Pid)]
    ),
    ok = over(Pid, Socket).

no_identifiers_test() ->
    {Pid, Socket} = connected(<<41, 0>>),
    Keys = [
        {undefined, <<"t/#">>}, {undefined, <<"t/+">>}, {<<"g">>, <<"t/a">>}, {<<"g">>, <<"u">>}
    ],
    [ok = subscribe(Pid, Key) || Key <- Keys],
    ?assertMatch([<<16#82, _, _:16, 0, _/binary>> | _], [packet(Socket) || _ <- Keys]),
    ok = gen_tcp:send(Socket, [
        <<16#30, 7, 0, 3, "t/a", 0, "1">>, <<16#30, 5, 0, 1, "u", 0, "2">>,
        <<16#30, 5, 0, 1, "x", 0, "3">>, <<16#30, 5, 0, 1, "t", 0, "4">>
    ]),
    ?assertEqual(
        [
            {<<"1">>, {undefined, <<"t/#">>}},
            {<<"1">>, {undefined, <<"t/+">>}},
            {<<"2">>, {<<"g">>, <<"u">>}},
            {<<"4">>, {undefined, <<"t/#">>}}
        ],
        lists:sort([{P, K} || {K, _, _, _, P} <- deliveries(4, Pid)])
    ),
    ok = over(Pid, Socket).

unavailable_test() ->
    {Pid, Socket} = connected(<<40, 0, 42, 0>>),
    Confirm = #{confirm => true, no_local => false},
    [
        ?assertEqual(denied, subscribe(Pid, Key, Options))
     || Key <- [{undefined, <<"a/#">>}, {undefined, <<"+">>}, {<<"g">>, <<"a">>}],
        Options <- [Confirm, Confirm#{confirm := false}]
    ],
    ok = subscribe(Pid, {undefined, <<"a">>}),
    ?assertMatch(<<16#82, _, _:16, 2, 11, 1, 0, 1, "a", _>>, packet(Socket)),
    ok = over(Pid, Socket).

%% A filter that would be read as a shared one.
share_filter_test() ->
    {Pid, Socket} = connected(<<>>),
    ?assertEqual(denied, subscribe(Pid, {undefined, <<"$share/g/a">>})),
    ok = over(Pid, Socket).

acknowledged_test() ->
    {Pid, Socket} = connected(<<>>),
    ok = subscribe(Pid, {undefined, <<"t">>}),
    <<16#82, _/binary>> = packet(Socket),
    ok = gen_tcp:send(Socket, [
        <<16#32, 9, 0, 1, "t", 0, 7, 2, 11, 1, "1">>,
        %% what can't be read is acknowledged, too, and what nobody wants any more
        <<16#32, 9, 0, 1, 255, 0, 8, 2, 11, 1, "2">>,
        <<16#30, 7, 0, 1, 255, 2, 11, 1, "3">>,
        <<16#32, 9, 0, 1, "t", 0, 9, 2, 11, 5, "4">>
    ]),
    ?assertEqual([<<16#40, 2, 0, Id>> || Id <- [7, 8, 9]], [packet(Socket) || _ <- [1, 2, 3]]),
    ?assertMatch([{_, _, _, _, <<"1">>}], deliveries(1, Pid)),
    ok = over(Pid, Socket).

%% What waits behind the Receive Maximum keeps its order, whatever its QoS, and so does what
%% comes after it.
receive_maximum_test() ->
    {Pid, Socket} = connected(<<33, 1:16>>),
    Self = self(),
    spawn_link(fun() ->
        Pubs = [
            request(<<"a">>, <<"r">>, <<"1">>),
            pub(<<"a">>, <<"2">>),
            request(<<"a">>, <<"r">>, <<"3">>),
            pub(<<"a">>, <<"4">>)
        ],
        Self ! {published, publish(Pid, Pubs, requests())}
    end),
    <<16#32, _, 0, 1, "a", First:16, _:5/binary, "1">> = packet(Socket),
    <<16#30, _, 0, 1, "a", 0, "2">> = packet(Socket),
    ok = unsubscribe_key(Pid, {undefined, <<"x">>}),
    ?assertEqual({error, timeout}, gen_tcp:recv(Socket, 0, 50)),
    ok = gen_tcp:send(Socket, <<16#40, 3, First:16, 16#10>>),
    <<16#32, _, 0, 1, "a", Second:16, _:5/binary, "3">> = packet(Socket),
    <<16#30, _, 0, 1, "a", 0, "4">> = packet(Socket),
    receive
        {published, Outcome} -> ?assertEqual(ok, Outcome)
    after ?WAIT -> error(not_published)
    end,
    ?assertEqual([{publish_rejected, <<"a">>, <<"r">>, no_responders}], events(Pid)),
    ok = gen_tcp:send(Socket, <<16#40, 2, Second:16>>),
    %% a stray one
    ok = gen_tcp:send(Socket, <<16#40, 2, 16#FFFF:16>>),
    timer:sleep(20),
    ?assertEqual([], events(Pid)),
    ok = over(Pid, Socket).

confirmations_test() ->
    {Pid, Socket} = connected(<<33, 2:16>>),
    Self = self(),
    Options = #{confirm => true, no_responders => true},
    spawn_link(fun() ->
        Pubs = [
            pub(<<"a">>, <<"1">>),
            #pub{subject = <<"a..b">>, topic = invalid, reply_to = <<"r">>, reply_topic = <<"r">>, payload = <<>>},
            pub(<<"a">>, <<"3">>),
            request(<<"a">>, <<"r">>, <<"4">>)
        ],
        Self ! {published, publish(Pid, Pubs, Options)}
    end),
    <<16#32, _, 0, 1, "a", A:16, 0, "1">> = packet(Socket),
    <<16#32, _, 0, 1, "a", B:16, 0, "3">> = packet(Socket),
    %% not in order, to see that each answer finds its message
    ok = gen_tcp:send(Socket, <<16#40, 3, B:16, 16#97>>),
    <<16#32, _, 0, 1, "a", C:16, _/binary>> = packet(Socket),
    ok = gen_tcp:send(Socket, <<16#40, 3, C:16, 16#10, 16#40, 3, A:16, 16#10>>),
    receive
        {published, Outcome} ->
            ?assertEqual(
                {published, [{2, no_responders}, {3, denied}, {4, no_responders}]}, Outcome
            )
    after ?WAIT -> error(not_published)
    end,
    ok = over(Pid, Socket).

%% Nothing is known of messages to such a broker.
maximum_qos_test() ->
    {Pid, Socket} = connected(<<36, 0>>),
    Options = #{confirm => true, no_responders => true},
    ok = publish(Pid, [pub(<<"a">>, <<"1">>), request(<<"a">>, <<"r">>, <<"2">>)], Options),
    <<16#30, _, 0, 1, "a", 0, "1">> = packet(Socket),
    <<16#30, _, 0, 1, "a", 4, 8, 0, 1, "r", "2">> = packet(Socket),
    ok = over(Pid, Socket).

maximum_packet_size_test() ->
    {Pid, Socket} = connected(<<39, 100:32>>),
    Fits = binary:copy(<<"x">>, 94),
    Large = binary:copy(<<"x">>, 95),
    Options = #{confirm => false, no_responders => false},
    {rejected, [{1, denied}]} =
        publish(Pid, [pub(<<"a">>, Large), pub(<<"a">>, Fits), pub(<<"a">>, <<>>)], Options),
    <<16#30, 98, 0, 1, "a", 0, Fits/binary>> = packet(Socket),
    <<16#30, 4, 0, 1, "a", 0>> = packet(Socket),
    ?assertEqual({rejected, [{1, denied}]}, publish(Pid, [pub(<<"a">>, Large)], #{
        confirm => true, no_responders => false
    })),
    ok = over(Pid, Socket).

%% A payload that fits whatever the subjects are. It is known to the next client before its login.
max_payload_follows_the_broker_test_() ->
    [
        ?_test(begin
            {ok, Server} = nats_gateway_upstream:start_link(),
            {Listen, Port} = listen(),
            Client = client(Port),
            Pid = spawn_link(fun() -> driver(Client) end),
            {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
            <<16#10, _/binary>> = packet(Socket),
            Size = byte_size(Properties),
            ok = gen_tcp:send(Socket, <<16#20, (3 + Size), 0, 0, Size, Properties/binary>>),
            {ok, Session} = call(Pid, outcome),
            ?assertEqual(Expected, maps:get(max_payload, Session, none)),
            {ok, Prepared} = ?HOST:prepare(Client),
            ?assertEqual(Expected, maps:get(max_payload, Prepared, none)),
            ok = gen_tcp:close(Listen),
            ok = over(Pid, Socket),
            ok = gen_server:stop(Server)
        end)
     || {Properties, Expected} <- [
            {<<>>, none},
            {<<39, 1048576:32>>, 1048576 - 4160},
            {<<39, 8320:32>>, 4160},
            {<<39, 100:32>>, 50},
            {<<39, 1:32>>, 1}
        ]
    ].

%% A larger packet would end the connection.
maximum_packet_size_of_a_subscription_test_() ->
    [
        ?_test(maximum_packet_size_of_a_subscription(Properties))
     %% with wildcards, and without
     || Properties <- [<<39, 100:32>>, <<39, 100:32, 40, 0>>]
    ].

maximum_packet_size_of_a_subscription(Properties) ->
    {Pid, Socket} = connected(Properties),
    Filter = fun(Size) -> binary:copy(<<"x">>, Size) end,
    denied = subscribe(Pid, {undefined, Filter(85)}),
    denied = subscribe(Pid, {<<"g">>, Filter(85 - byte_size(<<"$share/g/">>))}),
    Fits = Filter(84),
    ok = subscribe(Pid, {undefined, Fits}),
    <<16#82, _, _:16, 2, 11, 1, 0, 84, Fits:84/binary, _>> = packet(Socket),
    Shared = <<"$share/g/", (Filter(75))/binary>>,
    ok = subscribe(Pid, {<<"g">>, Filter(75)}),
    <<16#82, _, _:16, 2, 11, 2, 0, 84, Shared:84/binary, _>> = packet(Socket),
    ok = over(Pid, Socket).

%% The answer to a subscription that is not wanted any more changes nothing.
late_refusal_test() ->
    {Pid, Socket} = connected(<<>>),
    Key = {undefined, <<"a">>},
    ok = subscribe(Pid, Key),
    <<16#82, _, First:16, 2, 11, 1, _/binary>> = packet(Socket),
    ok = unsubscribe_key(Pid, Key),
    <<16#A2, _, Second:16, _/binary>> = packet(Socket),
    ok = subscribe(Pid, Key),
    <<16#82, _, Third:16, 2, 11, 2, _/binary>> = packet(Socket),
    ok = gen_tcp:send(Socket, [
        <<16#90, 4, First:16, 0, 16#87>>,
        <<16#B0, 4, Second:16, 0, 0>>,
        <<16#90, 4, Third:16, 0, 0>>,
        <<16#30, 7, 0, 1, "a", 2, 11, 1, "1">>, <<16#30, 7, 0, 1, "a", 2, 11, 2, "2">>
    ]),
    ?assertMatch(
        [{unsubscribed, Key}, {deliver, [{Key, _, _, _, <<"2">>}]}],
        await(Pid, fun(Event) -> element(1, Event) =:= deliver end, [], deadline())
    ),
    ok = over(Pid, Socket).

%% What a shared filter matches comes for it from the SUBACK on.
joined_test() ->
    {Pid, Socket} = connected(<<>>),
    Keys = [{<<"g">>, <<"a">>}, {<<"g">>, <<"b">>}, {undefined, <<"c">>}],
    Ids = [
        begin
            ok = subscribe(Pid, Key),
            <<16#82, _, Id:16, _/binary>> = packet(Socket),
            Id
        end
     || Key <- Keys
    ],
    ok = gen_tcp:send(Socket, [
        [<<16#90, 4, Id:16, 0, Reason>> || {Id, Reason} <- lists:zip(Ids, [0, 16#87, 0])],
        <<16#30, 7, 0, 1, "a", 2, 11, 1, "1">>
    ]),
    ?assertMatch(
        [{joined, {<<"g">>, <<"a">>}}, {subscribe_rejected, {<<"g">>, <<"b">>}, denied}, {deliver, [_]}],
        await_all(Pid, [])
    ),
    ok = over(Pid, Socket).

await_all(Pid, Acc) ->
    case Acc ++ all_events(Pid) of
        Events = [_, _, _ | _] ->
            Events;
        Events ->
            timer:sleep(1),
            await_all(Pid, Events)
    end.

%% What the broker may have sent by now is asked for, also where this client has sent nothing.
a_barrier_for_all_asks_the_broker_test() ->
    {Pid, Socket} = connected(<<>>),
    now = call(Pid, fun barrier_call/1),
    wait = call(Pid, fun(Host) -> ?HOST:barrier(all, Host) end),
    <<16#C0, 0>> = packet(Socket),
    ok = gen_tcp:send(Socket, <<16#D0, 0>>),
    [barrier] = await(Pid, barrier),
    ok = over(Pid, Socket).

%% A barrier waits for the answers that are missing, too.
barrier_test() ->
    {Pid, Socket} = connected(<<>>),
    ok = subscribe(Pid, {undefined, <<"a">>}),
    <<16#82, _, Id:16, _/binary>> = packet(Socket),
    wait = call(Pid, fun barrier_call/1),
    <<16#C0, 0>> = packet(Socket),
    ok = gen_tcp:send(Socket, <<16#D0, 0>>),
    timer:sleep(20),
    ?assertEqual([], events(Pid)),
    ok = gen_tcp:send(Socket, <<16#30, 7, 0, 1, "a", 2, 11, 1, "1", 16#90, 4, Id:16, 0, 0>>),
    ?assertMatch([{deliver, [_]}, barrier], await(Pid, barrier)),
    ok = over(Pid, Socket).

%% Something is said and heard within every keepalive interval.
keepalive_test_() ->
    {timeout, 10, fun() ->
        {Pid, Socket} = connected(<<19, 1:16>>),
        [
            begin
                {Microseconds, <<16#C0, 0>>} = timer:tc(fun() -> packet(Socket) end),
                ?assert(Microseconds < 1000000),
                ok = gen_tcp:send(Socket, <<16#D0, 0>>)
            end
         || _ <- [1, 2, 3]
        ],
        ?assertEqual([], events(Pid)),
        %% now the broker is silent
        <<16#C0, 0>> = packet(Socket),
        {Silence, [{close, upstream_lost}]} =
            timer:tc(fun() -> await(Pid, {close, upstream_lost}) end),
        ?assert(Silence < 1500000),
        timer:sleep(700),
        ?assertEqual([], events(Pid)),
        ok = gen_tcp:close(Socket)
    end}.

%% Nobody waits for a broker that does not read: not who publishes, whose input is held up until it
%% reads on, and not who ends.
stuck_upstream_test_() ->
    Payload = binary:copy(<<"x">>, 16777216),
    {timeout, 60, fun() ->
        {Pid, Socket} = connected(<<>>),
        ?assertEqual(now, call(Pid, fun ready_call/1)),
        {Published, ok} = timer:tc(fun() -> publish(Pid, [pub(<<"a">>, Payload)]) end),
        ?assert(Published < 1000000),
        ?assertEqual(wait, call(Pid, fun ready_call/1)),
        ok = read(Socket, byte_size(Payload)),
        [ready] = await(Pid, ready),
        ?assertEqual(now, call(Pid, fun ready_call/1)),

        ok = publish(Pid, [pub(<<"a">>, Payload)]),
        {Ended, ok} = timer:tc(fun() -> stop(Pid) end),
        ?assert(Ended < 1000000),
        ok = gen_tcp:close(Socket)
    end}.

%% A broker that writes before it reads on, as a process for each connection does: much in both
%% directions at once must not end with each waiting for the other.
both_directions_test_() ->
    [
        {atom_to_list(Kind), {timeout, 60, fun() -> both_directions(Kind) end}}
     || Kind <- [tcp, tls]
    ].

-define(BOTH_WAYS, 16 * 1048576).

both_directions(Kind) ->
    {Listen, Port} = listen(),
    Certified = certified(Kind),
    Broker = spawn_link(fun() -> writes_first(accept(Certified, Listen)) end),
    Upstream = (upstream(Port))#{tls := upstream_tls(Kind), connect_timeout := 20000},
    {Pid, Monitor} = spawn_monitor(fun() ->
        {wait, Host} = ?HOST:connect(client(Port, #{upstream => Upstream}, #{})),
        flood(binary:copy(<<"x">>, 10000), ?BOTH_WAYS, until(connected, Host))
    end),
    receive
        {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
    after 40000 -> error({waiting, process_info(Pid, current_stacktrace)})
    end,
    unlink(Broker),
    exit(Broker, kill),
    ok = gen_tcp:close(Listen).

%% Publishes whenever the host takes it.
flood(_, Left, Host) when Left =< 0 ->
    ok = ?HOST:disconnect(normal, Host);
flood(Payload, Left, Host) ->
    case ?HOST:ready(Host) of
        ok ->
            {ok, [], NHost} =
                ?HOST:publish([pub(<<"a">>, Payload)], #{confirm => false, no_responders => false}, Host),
            flood(Payload, Left - byte_size(Payload), NHost);
        {wait, NHost} ->
            flood(Payload, Left, until(ready, NHost))
    end.

until(Event, Host) ->
    receive
        Message ->
            case ?HOST:handle_info(Message, Host) of
                ignore -> until(Event, Host);
                {[Event], NHost} -> NHost;
                {[{Event, _}], NHost} -> NHost;
                {[], NHost} -> until(Event, NHost)
            end
    after 5000 -> error({missing, Event})
    end.

certified(tcp) ->
    none;
certified(tls) ->
    Own = [{digest, sha256}, {key, {rsa, 2048, 65537}}],
    #{server_config := Config} = public_key:pkix_test_data(#{
        server_chain => #{root => Own, intermediates => [], peer => Own},
        client_chain => #{root => Own, intermediates => [], peer => Own}
    }),
    Config.

accept(none, Listen) ->
    {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
    {gen_tcp, Socket};
accept(Certified, Listen) ->
    {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
    {ok, Ssl} = ssl:handshake(Socket, Certified, 20000),
    {ssl, Ssl}.

upstream_tls(tcp) -> none;
upstream_tls(tls) -> [{verify, verify_none}].

%% Four times what it reads, before it reads on.
writes_first({Transport, Socket}) ->
    {ok, _} = Transport:recv(Socket, 0, ?WAIT),
    ok = Transport:send(Socket, <<16#20, 3, 0, 0, 0>>),
    %% to a topic that nobody has subscribed to
    Copy = <<16#30, 16#83, 16#80, 1, 0, 1, "b", 0, (binary:copy(<<"y">>, 16384 - 1))/binary>>,
    writes_first(Transport, Socket, Copy).

writes_first(Transport, Socket, Copy) ->
    case Transport:recv(Socket, 0, 30000) of
        {ok, Bytes} ->
            Copies = 1 + 4 * byte_size(Bytes) div byte_size(Copy),
            _ = Transport:send(Socket, lists:duplicate(Copies, Copy)),
            writes_first(Transport, Socket, Copy);
        {error, _} ->
            ok
    end.

%% If nothing leaves the socket for the time that a write may take, the broker is given up.
dead_upstream_test_() ->
    {timeout, 60, fun() ->
        {Pid, Socket} = connected(<<>>),
        ok = publish(Pid, [pub(<<"a">>, binary:copy(<<"x">>, 16777216))]),
        ?assertEqual(wait, call(Pid, fun ready_call/1)),
        Lost = {close, upstream_lost},
        Deadline = erlang:monotonic_time(millisecond) + 30000,
        ?assertEqual([Lost], await(Pid, fun(Event) -> Event =:= Lost end, [], Deadline)),
        ok = gen_tcp:close(Socket)
    end}.

read(_, Left) when Left =< 0 ->
    ok;
read(Socket, Left) ->
    {ok, Bytes} = gen_tcp:recv(Socket, 0, ?WAIT),
    read(Socket, Left - byte_size(Bytes)).

ready_call(Host) ->
    case ?HOST:ready(Host) of
        ok -> {now, Host};
        {wait, NHost} -> {wait, NHost}
    end.

%% Messages that are not the host's, and those of an earlier connection.
foreign_messages_test() ->
    {Pid, Socket} = connected(<<>>),
    Own = call(Pid, fun(Host) -> {socket(Host), Host} end),
    Ignored = fun(Message) ->
        call(Pid, fun(Host) -> {?HOST:handle_info(Message, Host), Host} end)
    end,
    Messages = [
        hello,
        {tcp, Socket, <<"x">>},
        {tcp_closed, Socket},
        {tcp_passive, Socket},
        {?HOST, make_ref(), timeout},
        {?CLIENT, make_ref(), timeout},
        {?CLIENT, undefined, broken},
        {?CLIENT, {tcp, Socket}, broken}
    ],
    [?assertEqual(ignore, Ignored(Message)) || Message <- Messages],
    ok = gen_tcp:send(Socket, <<16#E0, 0>>),
    [{close, upstream_lost}] = await(Pid, {close, upstream_lost}),
    [
        ?assertEqual(ignore, Ignored(Message))
     || Message <- [{tcp, Own, <<"x">>}, {tcp_closed, Own}, {?CLIENT, {tcp, Own}, broken} | Messages]
    ],
    ok = gen_tcp:close(Socket).

listen() ->
    {ok, Listen} = gen_tcp:listen(0, [
        binary, {active, false}, {ip, {127, 0, 0, 1}}, {nodelay, true}
    ]),
    {ok, Port} = inet:port(Listen),
    {Listen, Port}.

impatient(Port) ->
    Upstream = (upstream(Port))#{connect_timeout => 300},
    client(Port, #{upstream => Upstream}, #{}).

connected(Properties) ->
    {Pid, Socket, _} = fake(fun client/1, Properties),
    {Pid, Socket}.

%% A client that is logged in, the broker's socket, and the CONNECT.
fake(Client, Properties) ->
    {Listen, Port} = listen(),
    Pid = spawn_link(fun() -> driver(Client(Port)) end),
    {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
    ok = gen_tcp:close(Listen),
    Connect = packet(Socket),
    Size = byte_size(Properties),
    ok = gen_tcp:send(Socket, <<16#20, (3 + Size), 0, 0, Size, Properties/binary>>),
    {ok, _} = call(Pid, outcome),
    {Pid, Socket, Connect}.

%% Nothing but the end is left to say.
over(Pid, Socket) ->
    ?assertEqual([], events(Pid)),
    ok = stop(Pid),
    ?assertEqual(<<16#E0, 1, 0>>, packet(Socket)),
    ?assertEqual({error, closed}, gen_tcp:recv(Socket, 0, ?WAIT)),
    gen_tcp:close(Socket).

%% The next packet of the client; those here are shorter than 128 bytes.
packet(Socket) ->
    {ok, <<First, Length>>} = gen_tcp:recv(Socket, 2, ?WAIT),
    {ok, Body} =
        case Length of
            0 -> {ok, <<>>};
            _ -> gen_tcp:recv(Socket, Length, ?WAIT)
        end,
    <<First, Length, Body/binary>>.

%% -------------------------------------------------------------------------------------------
%% The driver: a client's process with nothing but the host in it

client(Port) -> client(Port, #{}, #{}).

upstream(Port) ->
    #{upstream := Upstream} = maps:get(config, client(Port)),
    Upstream.

client(Port, Config, Fields) ->
    Defaults = #{
        upstream => #{
            host => {127, 0, 0, 1},
            port => Port,
            tls => none,
            connect_timeout => 2000,
            keepalive => 60,
            max_topic_levels => 200,
            max_packet_size => default,
            probe => false
        },
        clientinfo_override => #{},
        mountpoint => <<>>,
        retained_on_subscribe => false,
        max_payload_size => 1048576,
        max_control_line => 4096,
        secret => <<"of this gateway">>
    },
    #{
        connect => Fields,
        client_id => 1,
        transport => tcp,
        listener => <<"tcp:default">>,
        peername => {{127, 0, 0, 1}, 40000},
        sockname => {{127, 0, 0, 1}, 4222},
        config => maps:merge(Defaults, Config)
    }.

%% The outcome of a login that is over at once.
login_as(Client) ->
    {Pid, Outcome} = spawn_driver(Client),
    stop(Pid),
    Outcome.

start(Port) when is_integer(Port) ->
    start(client(Port));
start(Client) ->
    {Pid, {ok, _}} = spawn_driver(Client),
    Pid.

spawn_driver(Client) ->
    Pid = spawn_link(fun() -> driver(Client) end),
    {Pid, call(Pid, outcome)}.

driver(Client) ->
    case ?HOST:connect(Client) of
        {wait, Host} -> driver(Host, []);
        {error, Reason} -> not_started({error, Reason})
    end.

not_started(Outcome) ->
    receive
        {call, From, Ref, outcome} ->
            From ! {Ref, Outcome},
            not_started(Outcome);
        {call, From, Ref, stop} ->
            From ! {Ref, ok}
    end.

driver(Host, Events) ->
    receive
        {call, From, Ref, outcome} when Events =/= [] ->
            case lists:reverse(Events) of
                [{connected, Session} | Rest] ->
                    From ! {Ref, {ok, Session}},
                    driver(Host, lists:reverse(Rest));
                [{refused, Reason}] ->
                    From ! {Ref, {refused, Reason}},
                    driver(Host, [])
            end;
        {call, From, Ref, events} ->
            From ! {Ref, lists:reverse(Events)},
            driver(Host, []);
        {call, From, Ref, {take, Is}} ->
            case lists:splitwith(fun(Event) -> not Is(Event) end, lists:reverse(Events)) of
                {_, []} ->
                    From ! {Ref, none},
                    driver(Host, Events);
                {Before, [Event | After]} ->
                    From ! {Ref, {ok, Event}},
                    driver(Host, lists:reverse(Before ++ After))
            end;
        {call, From, Ref, stop} ->
            From ! {Ref, ?HOST:disconnect(test, Host)};
        {call, From, Ref, Fun} when is_function(Fun) ->
            {Reply, NHost} = Fun(Host),
            From ! {Ref, Reply},
            driver(NHost, Events);
        Message when element(1, Message) =/= call ->
            case ?HOST:handle_info(Message, Host) of
                ignore -> driver(Host, Events);
                {New, NHost} -> driver(NHost, lists:reverse(New, Events))
            end
    end.

call(Pid, Request) ->
    Ref = make_ref(),
    Pid ! {call, self(), Ref, Request},
    receive
        {Ref, Reply} -> Reply
    after ?WAIT -> error({no_answer, Request, erlang:process_info(Pid, current_stacktrace)})
    end.

stop(Pid) -> call(Pid, stop).

%% Deliveries without what this host never says. That a shared subscription has begun is left out.
events(Pid) -> [without_id(Event) || Event <- all_events(Pid), not is_joined(Event)].

is_joined({joined, _}) -> true;
is_joined(_) -> false.

all_events(Pid) -> call(Pid, events).

without_id({deliver, Deliveries}) ->
    {deliver, [
        {Key, Topic, Reply, Headers, Payload}
     || #delivery{
            key = Key, topic = Topic, reply = Reply, headers = Headers, payload = Payload, id = undefined
        } <- Deliveries
    ]};
without_id(Event) ->
    Event.

%% All events up to one of that kind.
await(Pid, Wanted) ->
    await(Pid, fun(Event) -> Event =:= Wanted end, [], deadline()).

await(Pid, Is, Acc, Deadline) ->
    NAcc = Acc ++ events(Pid),
    case lists:any(Is, NAcc) of
        true ->
            NAcc;
        false ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({missing, NAcc}),
            timer:sleep(1),
            await(Pid, Is, NAcc, Deadline)
    end.

await_any(Pid) ->
    case events(Pid) of
        [] ->
            timer:sleep(1),
            await_any(Pid);
        Events ->
            Events
    end.

deadline() -> erlang:monotonic_time(millisecond) + ?WAIT.

%% So many deliveries, and no other event.
deliveries(Count, Pid) -> deliveries(Count, Pid, [], deadline()).

deliveries(Count, Pid, Acc, Deadline) ->
    Events = events(Pid),
    NAcc = Acc ++ delivered(Events),
    ?assertEqual([], [Event || Event <- Events, element(1, Event) =/= deliver]),
    if
        length(NAcc) >= Count ->
            ?assertEqual(Count, length(NAcc)),
            NAcc;
        true ->
            ?assert(erlang:monotonic_time(millisecond) < Deadline),
            timer:sleep(1),
            deliveries(Count, Pid, NAcc, Deadline)
    end.

delivered(Events) -> lists:append([Deliveries || {deliver, Deliveries} <- Events]).

%% A completion; what was delivered before it stays to be asked for.
take(Pid, Is) -> take(Pid, Is, deadline()).

take(Pid, Is, Deadline) ->
    case call(Pid, {take, Is}) of
        {ok, Event} ->
            Event;
        none ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({missing, events(Pid)}),
            timer:sleep(1),
            take(Pid, Is, Deadline)
    end.

publish(Pid, Pubs) -> publish(Pid, Pubs, #{confirm => false, no_responders => false}).

publish(Pid, Pubs, Options) ->
    Outcome = call(Pid, fun(Host) ->
        case ?HOST:publish(Pubs, Options, Host) of
            {ok, [], NHost} -> {ok, NHost};
            {ok, Rejections, NHost} -> {{rejected, Rejections}, NHost};
            {wait, NHost} -> {wait, NHost};
            {stop, Reason, NHost} -> {{stop, Reason}, NHost}
        end
    end),
    case Outcome of
        wait -> take(Pid, fun(Event) -> element(1, Event) =:= published end);
        _ -> Outcome
    end.

requests() -> #{confirm => false, no_responders => true}.

subscribe(Pid, Key) -> subscribe(Pid, Key, #{confirm => false, no_local => false}).

subscribe_again(Pid, Keys, Options) ->
    Outcome = call(Pid, fun(Host) ->
        case ?HOST:subscribe_again(Keys, Options, Host) of
            {ok, [], NHost} -> {now, NHost};
            {wait, NHost} -> {wait, NHost}
        end
    end),
    case Outcome of
        wait -> take(Pid, fun(Event) -> element(1, Event) =:= subscribed_again end);
        _ -> Outcome
    end.

subscribe(Pid, Key, Options) ->
    Outcome = call(Pid, fun(Host) ->
        case ?HOST:subscribe(Key, Options, Host) of
            {stop, Reason, NHost} -> {{stop, Reason}, NHost};
            {Answer, NHost} -> {Answer, NHost}
        end
    end),
    case Outcome of
        wait -> take(Pid, fun(Event) -> element(1, Event) =:= subscribed end);
        _ -> Outcome
    end.

unsubscribe_key(Pid, Key) ->
    call(Pid, fun(Host) -> {ok, ?HOST:unsubscribe(Key, Host)} end).

barrier_call(Host) ->
    case ?HOST:barrier(own, Host) of
        {ok, NHost} -> {now, NHost};
        {wait, NHost} -> {wait, NHost}
    end.

barrier(Pid) ->
    case call(Pid, fun barrier_call/1) of
        now -> ok;
        wait -> barrier = take(Pid, fun(Event) -> Event =:= barrier end), ok
    end.

pub(Subject, Payload) -> pub(Subject, Payload, undefined).

pub(Subject, Payload, Block) ->
    #pub{subject = Subject, topic = topic(Subject), headers = Block, payload = Payload}.

request(Subject, ReplyTo, Payload) ->
    #pub{
        subject = Subject,
        topic = topic(Subject),
        reply_to = ReplyTo,
        reply_topic = topic(ReplyTo),
        payload = Payload
    }.

topic(Subject) -> nats_gateway_nif:topic(Subject, <<>>).

%% -------------------------------------------------------------------------------------------
%% Mosquitto

%% Tests are called with the port. Config is iodata with `{file, Name, Content}' and
%% `{plugin, Name}' for paths.
with_mosquitto(Config, Tests) ->
    case mosquitto() of
        false ->
            {"Mosquitto is not installed", []};
        Program ->
            {setup, fun() -> start_mosquitto(Program, Config) end, fun stop_mosquitto/1,
                fun({_, Port, _}) -> [named(Test, Port) || Test <- Tests] end}
    end.

named(Test, Port) ->
    {name, Name} = erlang:fun_info(Test, name),
    {atom_to_list(Name), {timeout, 60, fun() -> Test(Port) end}}.

mosquitto() ->
    Path = os:getenv("PATH", "") ++ ":/usr/local/sbin:/usr/sbin",
    os:find_executable("mosquitto", Path).

start_mosquitto(Program, Config) ->
    Directory = filename:join(
        os:getenv("TMPDIR", "/tmp"),
        "nats_gateway_" ++ os:getpid() ++ "_" ++
            integer_to_list(erlang:unique_integer([positive]))
    ),
    ok = file:make_dir(Directory),
    Port = free_port(),
    File = filename:join(Directory, "mosquitto.conf"),
    ok = file:write_file(File, [
        %% As root it would become another user, who can't read the files here.
        io_lib:format("user root\nlistener ~b 127.0.0.1\nlog_dest none\n", [Port]),
        [setting(Part, Directory) || Part <- Config]
    ]),
    Broker = open_port({spawn_executable, Program}, [{args, ["-c", File]}, exit_status]),
    wait_listening(Port, 200),
    {Broker, Port, Directory}.

setting({file, Name, Content}, Directory) ->
    File = filename:join(Directory, Name),
    ok = file:write_file(File, Content),
    File;
setting({plugin, Name}, _) ->
    [File | _] = lists:append([
        filelib:wildcard(Directory ++ "/" ++ Name)
     || Directory <- ["/usr/lib/*", "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    ]),
    File;
setting(Text, _) ->
    Text.

stop_mosquitto({Broker, _, Directory}) ->
    {os_pid, Pid} = erlang:port_info(Broker, os_pid),
    [] = os:cmd("kill " ++ integer_to_list(Pid)),
    receive
        {Broker, {exit_status, _}} -> ok
    after ?WAIT -> error(still_running)
    end,
    ok = file:del_dir_r(Directory).

free_port() ->
    {ok, Listen} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listen),
    ok = gen_tcp:close(Listen),
    Port.

wait_listening(Port, Tries) when Tries > 0 ->
    case gen_tcp:connect({127, 0, 0, 1}, Port, []) of
        {ok, Socket} ->
            gen_tcp:close(Socket);
        {error, econnrefused} ->
            timer:sleep(20),
            wait_listening(Port, Tries - 1)
    end.
