%% What needs no EMQX; the rest is tested in a node (test/emqx).
-module(nats_gateway_host_emqx_tests).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_host_emqx, [is_unclaimed/1]).

is_unclaimed_test() ->
    Gone = {node(), <<"t">>, {error, no_subscribers}},
    ?assert(is_unclaimed([])),
    ?assert(is_unclaimed([Gone, Gone])),
    ?assertNot(is_unclaimed([Gone, {node(), <<"t">>, {ok, 1}}])),
    ?assertNot(is_unclaimed([{share, <<"t">>, {ok, 1}}])),
    ?assertNot(is_unclaimed([{other, <<"t">>, ok}])),
    ?assertNot(is_unclaimed([persisted])).

%% -------------------------------------------------------------------------------------------
%% Deliveries and what is done between them, with EMQX's modules as far as they are needed

-define(HOST, nats_gateway_host_emqx).

with_emqx_test_() ->
    {foreach, fun nats_gateway_fake_emqx:load/0,
        fun(_) ->
            ok = nats_gateway_fake_emqx:unload(),
            _ = flush()
        end,
        [
            fun what_comes_behind_an_unsubscribe_is_not_taken_before_it/0,
            fun a_barrier_is_behind_all_that_has_come/0,
            fun what_a_member_joins_for_is_known_late/0,
            fun a_subscription_that_is_made_again_goes_on/0,
            fun what_is_put_back_keeps_its_place/0,
            fun what_is_declined_goes_to_another_member/0,
            fun a_slow_publish_lets_the_mailbox_have_its_turn/0,
            fun automatic_subscriptions_are_made_if_a_setting_says_so/0,
            fun somebody_elses_subscription_must_be_allowed/0,
            fun somebody_elses_subscription_is_a_new_one/0,
            fun a_subscription_is_listed_with_a_sid/0,
            fun an_end_has_emqxs_word/0,
            fun what_comes_for_a_member_that_has_left_is_another_members/0
        ]}.

connected() -> connected(#{}).

connected(Settings) -> connected(tcp, Settings).

connected(Transport, Settings) ->
    Config = (maps:merge(nats_gateway_file:defaults(), Settings))#{
        host => #{
            context => nats_gateway_emqx_metrics:context(#{}),
            enable_authn => true,
            auto_subscribe => maps:get(auto_subscribe, Settings, false)
        },
        login => nats_gateway_login:none(),
        clientinfo_override => #{}
    },
    {ok, _, Host} = ?HOST:connect(#{
        connect => #{},
        client_id => 1,
        transport => Transport,
        listener => 'nats:tcp:default',
        peername => {{127, 0, 0, 1}, 50000},
        sockname => {{127, 0, 0, 1}, 4222},
        config => Config
    }),
    Host.

subscribed(Key, Host) ->
    {ok, NHost} = ?HOST:subscribe(Key, #{confirm => false, no_local => false}, Host),
    NHost.

flush() ->
    receive
        Message -> [Message | flush()]
    after 0 -> []
    end.

%% As the connection hands over its messages: the first one, and then what is left of them.
events(Host) ->
    receive
        {asked, _} ->
            events(Host);
        Message ->
            {Events, NHost} = ?HOST:handle_messages([Message], Host),
            {More, Last} = events(NHost),
            {Events ++ More, Last}
    after 0 -> {[], Host}
    end.

told(Host) ->
    {Events, NHost} = events(Host),
    {lists:flatmap(fun told_of/1, Events), NHost}.

told_of({deliver, Deliveries}) -> [Payload || #delivery{payload = Payload} <- Deliveries];
told_of(Event) -> [Event].

what_comes_behind_an_unsubscribe_is_not_taken_before_it() ->
    Key = {undefined, <<"a">>},
    Host = subscribed(Key, connected()),
    _ = nats_gateway_fake_emqx:deliver(Key, <<"before">>),
    NHost = ?HOST:unsubscribe(Key, Host),
    _ = nats_gateway_fake_emqx:deliver(Key, <<"behind">>),
    ?assertMatch({[<<"before">>, {unsubscribed, Key}], _}, told(NHost)).

%% It is a promise for what came before it only.
a_barrier_is_behind_all_that_has_come() ->
    Key = {undefined, <<"a">>},
    Host = subscribed(Key, connected()),
    _ = nats_gateway_fake_emqx:deliver(Key, <<"before">>),
    {wait, NHost} = ?HOST:barrier(own, Host),
    _ = nats_gateway_fake_emqx:deliver(Key, <<"behind">>),
    ?assertMatch({[<<"before">>, <<"behind">>, barrier], _}, told(NHost)).

%% A copy that was on its way when EMQX got to know the member comes behind the mark for that.
what_a_member_joins_for_is_known_late() ->
    Plain = {undefined, <<"a">>},
    Key = {<<"q">>, <<"a">>},
    Host = subscribed(Plain, connected()),
    _ = nats_gateway_fake_emqx:deliver(Plain, <<"before">>),
    NHost = subscribed(Key, Host),
    _ = nats_gateway_fake_emqx:deliver(Key, <<"behind">>),
    ?assertMatch({[<<"before">>, <<"behind">>, {joined, Key}], _}, told(NHost)).

a_subscription_that_is_made_again_goes_on() ->
    Key = {undefined, <<"a">>},
    Host = ?HOST:unsubscribe(Key, subscribed(Key, connected())),
    NHost = subscribed(Key, Host),
    _ = nats_gateway_fake_emqx:deliver(Key, <<"x">>),
    ?assertMatch({[{unsubscribed, Key}, <<"x">>], _}, told(NHost)).

what_is_declined_goes_to_another_member() ->
    Key = {<<"q">>, <<"a">>},
    Host = subscribed(Key, connected()),
    _ = nats_gateway_fake_emqx:deliver(Key, <<"x">>),
    {Events, NHost} = events(Host),
    [#delivery{id = {<<"x">>, Origin}}] = lists:append([D || {deliver, D} <- Events]),
    _ = flush(),
    _ = ?HOST:decline([{Key, Origin}], NHost),
    ?assertEqual([{asked, {dispatch, <<"q">>, <<"a">>, <<"x">>}}], flush()).

%% What the channel tells a host that asks.
-define(CHANNEL, #{
    may_subscribe => fun({_, Filter}) -> Filter =/= <<"no/login">> end,
    sids => fun(_) -> [<<"7">>, <<"12">>] end
}).

%% Each decision takes longer than the host may: it is one message, then what has come meanwhile.
a_slow_publish_lets_the_mailbox_have_its_turn() ->
    put(authorization_ms, 15),
    put(tells, true),
    put({denied, <<"b">>}, true),
    Host = subscribed({undefined, <<"x">>}, connected()),
    _ = flush(),
    Pubs = [#pub{subject = T, topic = T, payload = <<>>} || T <- [<<"a">>, <<"b">>, <<"c">>]],
    {wait, H1} = ?HOST:publish(Pubs, #{confirm => false, no_responders => false}, Host),
    _ = nats_gateway_fake_emqx:deliver({undefined, <<"x">>}, <<"meanwhile">>),
    [{asked, {publish, <<"a">>}}, {?HOST, publish} = GoOn, Deliver] = flush(),
    {[], H2} = ?HOST:handle_messages([GoOn], H1),
    {[{deliver, [#delivery{topic = <<"x">>, payload = <<"meanwhile">>}]}], H3} =
        ?HOST:handle_messages([Deliver], H2),
    [GoOn] = flush(),
    ?assertMatch({[{published, [{2, denied}]}], _}, ?HOST:handle_messages([GoOn], H3)),
    ?assertEqual([{asked, {publish, <<"c">>}}], flush()),
    [erase(Key) || Key <- [authorization_ms, tells, {denied, <<"b">>}]].

automatic_subscriptions_are_made_if_a_setting_says_so() ->
    Message = {subscribe, [{<<"a">>, #{qos => 1}}, {<<"b">>, #{}}]},
    ?assertEqual(ignore, ?HOST:handle_info(Message, connected())),
    {Events, _} = ?HOST:handle_info(Message, connected(#{auto_subscribe => true})),
    ?assertEqual(
        [{call, {subscribe, <<"a">>, #{qos => 1}}}, {call, {subscribe, <<"b">>, #{}}}], Events
    ).

somebody_elses_subscription_must_be_allowed() ->
    put({denied, <<"no/acl">>}, true),
    [
        begin
            Host = connected(),
            ?assertMatch(
                {{error, Reason}, [], _}, ?HOST:handle_call({subscribe, Topic, #{}}, ?CHANNEL, Host)
            ),
            ?assertEqual([], flush())
        end
     || {Topic, Reason} <- [
            {<<"no/acl">>, not_authorized},
            {<<"no/login">>, not_authorized},
            {<<"bad">>, <<"no valid topic filter">>},
            {binary:copy(<<"/">>, 65536), <<"too many topic levels">>}
        ]
    ],
    erase({denied, <<"no/acl">>}).

%% Whoever made the one that there is.
somebody_elses_subscription_is_a_new_one() ->
    Key = {undefined, <<"a">>},
    Add = fun(Host) -> ?HOST:handle_call({subscribe, <<"a">>, #{qos => 1, rh => 1}}, ?CHANNEL, Host) end,
    {{ok, {<<"a">>, #{qos := 1}}}, [{added, Key}], Added} = Add(connected()),
    ?assertEqual([{asked, {subscribe, <<"a">>}}], flush()),
    lists:foreach(
        fun(Host) ->
            _ = flush(),
            ?assertMatch({{error, <<"the client has this", _/binary>>}, [], _}, Add(Host)),
            ?assertEqual([], flush())
        end,
        [Added, subscribed(Key, connected())]
    ).

a_subscription_is_listed_with_a_sid() ->
    Host = subscribed({undefined, <<"a">>}, connected()),
    ?assertMatch(
        {{ok, [{<<"a">>, #{qos := 0, sub_props := #{sid := <<"7">>}}}]}, [], _},
        ?HOST:handle_call(subscriptions, ?CHANNEL, Host)
    ).

what_comes_for_a_member_that_has_left_is_another_members() ->
    Key = {<<"q">>, <<"a">>},
    Plain = {undefined, <<"a">>},
    Left = lists:foldl(fun ?HOST:unsubscribe/2, subscribed(Plain, subscribed(Key, connected())), [Key, Plain]),
    {_, Host} = told(Left),
    _ = nats_gateway_fake_emqx:deliver(Key, <<"x">>),
    _ = nats_gateway_fake_emqx:deliver(Plain, <<"y">>),
    Late = flush(),
    ?assertMatch({[], _}, ?HOST:handle_messages(Late, Host)),
    ?assertEqual([{asked, {dispatch, <<"q">>, <<"a">>, <<"x">>}}], flush()).

an_end_has_emqxs_word() ->
    lists:foreach(
        fun({Transport, Reason, Word}) ->
            Host = connected(Transport, #{}),
            put(tells, true),
            ok = ?HOST:disconnect(Reason, Host),
            erase(tells),
            ?assertMatch(
                [
                    {asked, {hook, 'client.disconnected', [_, Word, #{disconnected_at := _}]}},
                    {asked, {hook, 'session.terminated', [_, Word, _]}}
                ],
                flush()
            )
        end,
        [
            {tcp, {shutdown, client_closed}, tcp_closed},
            {ws, {shutdown, client_closed}, tcp_closed},
            {ssl, {shutdown, client_closed}, ssl_closed},
            {wss, {shutdown, client_closed}, ssl_closed},
            {tcp, {shutdown, kicked}, kicked},
            {tcp, {shutdown, {error, discarded}}, discarded},
            {tcp, {shutdown, stale_connection}, keepalive_timeout},
            {tcp, {shutdown, user_authentication_expired}, expired},
            {tcp, {shutdown, account_authentication_expired}, expired},
            {tcp, {shutdown, slow_consumer}, slow_consumer},
            {tcp, {badmatch, x}, internal_error},
            {tcp, normal, normal},
            {tcp, shutdown, shutdown}
        ]
    ).

%% Who skips its own messages looks for them after each publish, and puts back what it has found.
what_is_put_back_keeps_its_place() ->
    Key = {undefined, <<"a">>},
    {ok, Skips} = ?HOST:subscribe({<<"q">>, <<"b">>}, #{confirm => false, no_local => true}, connected()),
    _ = flush(),
    Host = subscribed(Key, Skips),
    Publish = fun(Payload, Acc) ->
        %% the broker delivers it before it answers
        _ = nats_gateway_fake_emqx:deliver(Key, Payload),
        Pub = #pub{subject = <<"a">>, topic = <<"a">>, payload = Payload},
        {ok, [], NAcc} = ?HOST:publish([Pub], #{confirm => false, no_responders => false}, Acc),
        NAcc
    end,
    Unsubscribed = ?HOST:unsubscribe(Key, Publish(<<"before">>, Publish(<<"first">>, Host))),
    {wait, Waiting} = ?HOST:barrier(own, Publish(<<"behind">>, Unsubscribed)),
    ?assertMatch({[<<"first">>, <<"before">>, {unsubscribed, Key}, barrier], _}, told(Waiting)).
