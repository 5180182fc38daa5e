%% The standalone host against a real Mosquitto (2.0.x). The tests named `mosquitto_...' hold what the
%% design relies on.
-module(nats_gateway_host_mqtt_mosquitto_tests).

-include("nats_gateway.hrl").
-include("nats_gateway_mqtt.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_host_mqtt_driver, [
    await/2, barrier/1, call/2, client/1, client/3, delivered/1,
    deliveries/2, events/1, login_as/1, pub/2, pub/3, publish/2, publish/3,
    request/3, requests/0, socket/1, start/1, stop/1, subscribe/2, subscribe/3,
    subscribe_again/3, take/2, unsubscribe_key/2, upstream/1
]).
-import(nats_gateway_scripted_broker, [free_port/0]).

-define(HOST, nats_gateway_host_mqtt).
-define(DRIVER, nats_gateway_host_mqtt_driver).
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
    ?assertEqual(now, call(Gateway, fun ?DRIVER:barrier_call/1)),
    ok = subscribe(Gateway, {undefined, <<"ba">>}),
    ?assertEqual(wait, call(Gateway, fun ?DRIVER:barrier_call/1)),
    [barrier] = await(Gateway, barrier),
    ?assertEqual(now, call(Gateway, fun ?DRIVER:barrier_call/1)),
    Key = {undefined, <<"ba">>},
    ok = unsubscribe_key(Gateway, Key),
    ?assertEqual(wait, call(Gateway, fun ?DRIVER:barrier_call/1)),
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

wait_listening(Port, Tries) when Tries > 0 ->
    case gen_tcp:connect({127, 0, 0, 1}, Port, []) of
        {ok, Socket} ->
            gen_tcp:close(Socket);
        {error, econnrefused} ->
            timer:sleep(20),
            wait_listening(Port, Tries - 1)
    end.
