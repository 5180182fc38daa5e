%% Subjects that rules map, through the channel of a client with a fake host.
-module(nats_gateway_subject_views_tests).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(CONNECT,
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n"
).

mappings(Publish, Subscribe) ->
    Settings = #{<<"publish">> => Publish, <<"subscribe">> => Subscribe},
    {ok, Known} = nats_gateway_schema:check(nats_gateway_mapping_config:file_schema(), Settings),
    #{mappings => nats_gateway_mapping_config:of_file(Known)}.

channel(Settings) ->
    _ = calls(),
    Config = maps:merge(nats_gateway_file:defaults(), Settings),
    {ok, _, _, Channel} = nats_gateway_channel:init(nats_gateway_host_fake, nats_gateway_host_fake:client(Config)),
    Channel.

open(Settings) ->
    {<<>>, Channel} = input(?CONNECT, channel(Settings)),
    _ = calls(),
    Channel.

input(Text, Channel) ->
    Bytes = iolist_to_binary(Text),
    {ok, Ops, <<>>, _} = nats_gateway_nif:decode(Bytes, nats_gateway_channel:decoder(Channel)),
    {ok, Out, _, NChannel} = nats_gateway_channel:handle_ops(Ops, Channel),
    {iolist_to_binary(Out), NChannel}.

deliver(Key, Topic, Channel) ->
    Event = {deliver, [#delivery{key = Key, topic = Topic, payload = <<"x">>}]},
    {ok, Out, _, NChannel} = nats_gateway_channel:handle_info({fake, events, [Event]}, Channel),
    {iolist_to_binary(Out), NChannel}.

calls() ->
    receive
        {host, Call} -> [Call | calls()]
    after 0 -> []
    end.

published() -> [{Subject, Topic} || {publish, Pubs, _} <- calls(), #pub{subject = Subject, topic = Topic} <- Pubs].

subscribed() -> [Key || {subscribe, Key, _} <- calls()].

a_publish_goes_to_the_subject_of_the_first_rule_test() ->
    Channel = open(mappings([<<"a.1 -> one">>, <<"a.* -> fleet.{{wildcard(1)}}.x">>], [])),
    Text = ["PUB ", lists:join(" 0\r\n\r\nPUB ", ["a.1", "a.5", "b", "fleet.5.x"]), " 0\r\n\r\n"],
    {<<>>, _} = input(Text, Channel),
    ?assertEqual(
        [
            {<<"one">>, <<"one">>},
            {<<"fleet.5.x">>, <<"fleet/5/x">>},
            {<<"b">>, <<"b">>},
            {<<"fleet.5.x">>, <<"fleet/5/x">>}
        ],
        published()
    ).

a_subscription_is_not_mapped_by_rules_for_publishes_test() ->
    {<<>>, _} = input("SUB a.* 1\r\n", open(mappings([<<"a.* -> b.$1">>], []))),
    ?assertEqual([{undefined, <<"a/+">>}], subscribed()).

the_reply_subject_is_not_mapped_test() ->
    {<<>>, _} = input("PUB a.1 a.2 0\r\n\r\n", open(mappings([<<"a.* -> b.$1">>], []))),
    [{publish, [Pub], _}] = calls(),
    ?assertMatch(
        #pub{topic = <<"b/1">>, reply_to = <<"a.2">>, reply_topic = <<"a/2">>}, Pub
    ).

%% As in nats-server, which has no subject for it, and no responders.
a_message_that_a_rule_loses_goes_to_nobody_test() ->
    Channel = open(mappings([<<"a.* -> ", (joined(<<"$1">>, 300))/binary>>], [])),
    Long = binary:copy(<<"x">>, 1000),
    {<<>>, NChannel} = input(["SUB _INBOX.1 1\r\nPUB a.", Long, " 0\r\n\r\n"], Channel),
    ?assertEqual([{<<>>, invalid}], published()),
    {Out, _} = input(["PUB a.", Long, " _INBOX.1 0\r\n\r\n"], NChannel),
    ?assertEqual({<<>>, [{<<>>, invalid}]}, {Out, published()}).

joined(Text, Count) -> iolist_to_binary(lists:join($., lists:duplicate(Count, Text))).

a_subscription_is_mapped_and_its_messages_back_test() ->
    Channel = open(mappings([], [<<"a.*.* -> fleet.$2.x.$1">>])),
    {<<>>, Subscribed} = input("SUB a.*.* 1\r\nSUB a.*.7 q 2\r\nSUB b 3\r\n", Channel),
    Key = {undefined, <<"fleet/+/x/+">>},
    Share = {<<"q">>, <<"fleet/7/x/+">>},
    ?assertEqual([Key, Share, {undefined, <<"b">>}], subscribed()),
    {Plain, _} = deliver(Key, <<"fleet/2/x/1">>, Subscribed),
    ?assertEqual(<<"MSG a.1.2 1 1\r\nx\r\n">>, Plain),
    {Queue, _} = deliver(Share, <<"fleet/7/x/1">>, Subscribed),
    ?assertEqual(<<"MSG a.1.7 2 1\r\nx\r\n">>, Queue),
    {Other, _} = deliver({undefined, <<"b">>}, <<"b">>, Subscribed),
    ?assertEqual(<<"MSG b 3 1\r\nx\r\n">>, Other).

%% Two rules and a plain subscription lead to one key of the broker.
each_sid_sees_the_subject_that_it_subscribed_to_test() ->
    Channel = open(mappings([], [<<"a.* -> t.$1">>, <<"b.* -> t.$1">>])),
    {<<>>, Subscribed} = input("SUB a.* 1\r\nSUB b.* 2\r\nSUB t.* 3\r\nSUB a.* 4\r\n", Channel),
    Key = {undefined, <<"t/+">>},
    ?assertEqual([Key], subscribed()),
    {Out, _} = deliver(Key, <<"t/9">>, Subscribed),
    ?assertEqual(
        lists:sort([<<"MSG a.9 1 1">>, <<"MSG b.9 2 1">>, <<"MSG t.9 3 1">>, <<"MSG a.9 4 1">>]),
        lists:sort([Line || Line = <<"MSG", _/binary>> <- binary:split(Out, <<"\r\n">>, [global])])
    ).

what_is_under_way_after_an_unsubscription_has_the_same_subject_test() ->
    Channel = open(mappings([], [<<"a.* -> t.$1">>])),
    {<<>>, Left} = input("SUB a.* 1\r\nUNSUB 1\r\n", Channel),
    {Out, _} = deliver({undefined, <<"t/+">>}, <<"t/9">>, Left),
    ?assertEqual(<<"MSG a.9 1 1\r\nx\r\n">>, Out).

the_last_message_of_a_limited_subscription_test() ->
    Channel = open(mappings([], [<<"a.* -> t.$1">>])),
    {<<>>, Limited} = input("SUB a.* 1\r\nUNSUB 1 1\r\n", Channel),
    {Out, _} = deliver({undefined, <<"t/+">>}, <<"t/9">>, Limited),
    ?assertEqual(<<"MSG a.9 1 1\r\nx\r\n">>, Out).

a_sid_may_be_used_again_for_a_plain_subscription_test() ->
    Channel = open(mappings([], [<<"a.* -> t.$1">>])),
    {<<>>, Again} = input("SUB a.* 1\r\nUNSUB 1\r\nSUB t.5 1\r\n", Channel),
    {Out, _} = deliver({undefined, <<"t/5">>}, <<"t/5">>, Again),
    ?assertEqual(<<"MSG t.5 1 1\r\nx\r\n">>, Out).

%% Clients that request something subscribe and unsubscribe for as long as they live.
ended_subscriptions_are_forgotten_test() ->
    {_, Views} = lists:foldl(
        fun(N, {Subs, Acc}) ->
            Sid = integer_to_binary(N),
            Sub = #sub{
                subject = <<"a.1">>, filter = <<"t/1">>, sid = Sid, inverse = <<"i">>
            },
            {_, Added} = nats_gateway_subscriptions:add(
                Sid, <<"a.1">>, undefined, {undefined, <<"t/1">>}, Subs
            ),
            NAcc = nats_gateway_subject_views:added(Sub, Added, Acc),
            {nats_gateway_subscriptions:remove(Sid, Added), NAcc}
        end,
        {nats_gateway_subscriptions:new(), nats_gateway_subject_views:new()},
        lists:seq(1, 1000)
    ),
    ?assert(maps:size(Views) =< 34).

wildcards_of_a_client_do_not_lead_to_names_of_the_broker_test_() ->
    Channel = open(mappings([], [<<"a.*.> -> $1.>">>])),
    [
        ?_assertMatch(
            {<<"-ERR 'Invalid Subject'\r\n">>, _}, input(["SUB a.", Name, ".x 1\r\n"], Channel)
        )
     || Name <- ["$share", "$SYS", "$queue"]
    ].

%% The broker's names are what an administrator permits.
permissions_are_about_the_subjects_of_the_broker_test() ->
    {ok, Password} = nats_gateway_login:secret(<<"p">>),
    Allow = #{allow => [<<"t.>">>], deny => []},
    User = #{
        user => <<"u">>,
        password => Password,
        nkey => undefined,
        rules => #{publish => Allow, subscribe => Allow, allow_responses => undefined}
    },
    Rules = [<<"a.* -> t.$1">>, <<"t.* -> x.$1">>],
    {ok, Login} = nats_gateway_login:new(#{methods => [{users, [User]}]}),
    Settings = (mappings(Rules, Rules))#{login => Login, auth_required => true},
    Connect = "CONNECT {\"verbose\":false,\"pedantic\":false,\"user\":\"u\",\"pass\":\"p\"}\r\n",
    {<<>>, Channel} = input(Connect, channel(Settings)),
    _ = calls(),
    {<<>>, _} = input("PUB a.1 0\r\n\r\nSUB a.* 1\r\n", Channel),
    {Denied, _} = input("PUB t.1 0\r\n\r\nSUB t.* 1\r\n", Channel),
    ?assertEqual(
        <<
            "-ERR 'Permissions Violation for Publish to \"x.1\"'\r\n"
            "-ERR 'Permissions Violation for Subscription to \"t.*\"'\r\n"
        >>,
        Denied
    ).

%% The operations were decoded when nobody knew the mountpoint yet.
a_client_without_connect_is_mapped_under_the_mountpoint_test() ->
    Rules = [<<"a.* -> t.$1">>],
    Channel = channel((mappings(Rules, Rules))#{mountpoint => <<"m/">>}),
    {_, Logged} = input("PUB a.1 0\r\n\r\nSUB a.* 1\r\n", Channel),
    Calls = calls(),
    ?assertEqual([<<"m/t/1">>], [Topic || {publish, [#pub{topic = Topic}], _} <- Calls]),
    ?assertEqual([{undefined, <<"m/t/+">>}], [Key || {subscribe, Key, _} <- Calls]),
    {Out, _} = deliver({undefined, <<"m/t/+">>}, <<"m/t/9">>, Logged),
    ?assertEqual(<<"MSG a.9 1 1\r\nx\r\n">>, Out).

%% Those that the client has keep the rule that they were made with.
changed_rules_hold_for_what_follows_test() ->
    Channel = open(mappings([<<"a.* -> t.$1">>], [<<"a.* -> t.$1">>])),
    {<<>>, Subscribed} = input("SUB a.* 1\r\n", Channel),
    Config = maps:merge(nats_gateway_file:defaults(), mappings([<<"a.* -> u.$1">>], [])),
    {ok, [], _, Changed} = nats_gateway_channel:configure(Config, Subscribed),
    _ = calls(),
    {<<>>, _} = input("PUB a.1 0\r\n\r\nSUB a.5 2\r\n", Changed),
    Calls = calls(),
    ?assertEqual([<<"u/1">>], [Topic || {publish, [#pub{topic = Topic}], _} <- Calls]),
    ?assertEqual([{undefined, <<"a/5">>}], [Key || {subscribe, Key, _} <- Calls]),
    {Out, _} = deliver({undefined, <<"t/+">>}, <<"t/9">>, Changed),
    ?assertEqual(<<"MSG a.9 1 1\r\nx\r\n">>, Out).
