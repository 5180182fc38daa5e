-module(nats_gateway_upstream_tests).

-include_lib("eunit/include/eunit.hrl").

-export([log/2]).

-define(UPSTREAM, nats_gateway_upstream).
-define(WAIT, 5000).

log(#{msg := {report, Report}}, #{config := Test}) ->
    Test ! {logged, maps:without([reason], Report)};
log(_, _) -> ok.

it_is_a_part_of_the_standalone_gateway_test() ->
    {ok, Started} = application:ensure_all_started(nats_gateway),
    ?assert(is_pid(whereis(?UPSTREAM))),
    [ok = application:stop(App) || App <- Started, App =:= nats_gateway],
    ?assertEqual(undefined, whereis(?UPSTREAM)).

upstream_test_() ->
    {foreach, fun start/0, fun stop/1, [
        {with, [fun(Server) -> listening(Test, Server) end]}
     || Test <- [
            fun one_connection_answers_all/1,
            fun what_is_known_is_not_asked_again/1,
            fun a_broker_that_is_gone_is_found_again/1,
            fun lost_connections_make_it_look_again/1,
            fun one_line_for_an_outage/1,
            fun one_line_for_refused_logins/1,
            fun a_silent_handshake_is_no_broker/1,
            fun why_it_is_not_there/1,
            fun who_watches_causes_few_connections/1
        ]
    ]}.

start() ->
    {ok, _} = application:ensure_all_started(ssl),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => none, level => notice}),
    {ok, Server} = ?UPSTREAM:start_link(),
    Server.

%% To the log, in the process of the test.
listening(Test, Server) ->
    ok = logger:set_handler_config(?MODULE, config, self()),
    Test(Server).

stop(Server) ->
    ok = logger:remove_handler(?MODULE),
    ok = gen_server:stop(Server).

one_connection_answers_all(_) ->
    {Listen, Upstream} = broker(),
    Answers = parallel(100, fun() -> ?UPSTREAM:available(Upstream) end),
    ?assertEqual(lists:duplicate(100, {true, #{}}), Answers),
    ?assertEqual(1, connections(Listen)).

what_is_known_is_not_asked_again(_) ->
    {Listen, Upstream} = broker(),
    {ok, Socket} = ?UPSTREAM:open(Upstream, ?WAIT),
    ?assertEqual({true, #{}}, ?UPSTREAM:available(Upstream)),
    Facts = #{maximum_packet_size => 1000},
    ok = ?UPSTREAM:accepted(Facts, Upstream),
    ?assertEqual({true, Facts}, ?UPSTREAM:available(Upstream)),
    ?assertEqual(1, connections(Listen)),
    ok = nats_gateway_transport:close(Socket).

a_broker_that_is_gone_is_found_again(_) ->
    {Listen, Upstream = #{port := Port}} = broker(),
    ok = gen_tcp:close(Listen),
    ?assertEqual([false, false], parallel(2, fun() -> ?UPSTREAM:available(Upstream) end)),
    {ok, Again} = gen_tcp:listen(Port, [{reuseaddr, true}, {ip, {127, 0, 0, 1}}]),
    ok = until(fun() -> ?UPSTREAM:available(Upstream) =/= false end),
    ok = gen_tcp:close(Again).

lost_connections_make_it_look_again(_) ->
    {Listen, Upstream} = broker(),
    {ok, Socket} = ?UPSTREAM:open(Upstream, ?WAIT),
    ok = gen_tcp:close(Listen),
    ok = nats_gateway_transport:close(Socket),
    ok = ?UPSTREAM:lost(Upstream),
    ?assertEqual(false, ?UPSTREAM:available(Upstream)).

one_line_for_an_outage(_) ->
    {Listen, Upstream = #{port := Port}} = broker(),
    ok = gen_tcp:close(Listen),
    [{error, unreachable} = ?UPSTREAM:open(Upstream, ?WAIT) || _ <- lists:seq(1, 20)],
    Address = {{127, 0, 0, 1}, Port},
    ?assertEqual([#{msg => upstream_connect_failed, upstream => Address}], logged()),
    {ok, Again} = gen_tcp:listen(Port, [{reuseaddr, true}, {ip, {127, 0, 0, 1}}]),
    [{ok, _} = ?UPSTREAM:open(Upstream, ?WAIT) || _ <- lists:seq(1, 5)],
    ?assertEqual(
        [#{msg => upstream_is_back, upstream => Address, after_seconds => 0}], logged()
    ),
    ok = gen_tcp:close(Again).

one_line_for_refused_logins(_) ->
    {_, Upstream = #{port := Port}} = broker(),
    Address = {{127, 0, 0, 1}, Port},
    Refuse = fun(Why) ->
        [ok = ?UPSTREAM:refused(Why, #{reason_code => Why}, Upstream) || _ <- lists:seq(1, 20)]
    end,
    Refuse(16#88),
    Refuse(16#9C),
    Line = #{msg => upstream_refused, upstream => Address},
    ?assertEqual([Line#{reason_code => 16#88}, Line#{reason_code => 16#9C}], logged()),
    [ok = ?UPSTREAM:accepted(#{}, Upstream) || _ <- lists:seq(1, 5)],
    ?assertEqual(
        [#{msg => upstream_is_back, upstream => Address, after_seconds => 0}], logged()
    ),
    %% not again so soon, however often it changes
    Refuse(16#88),
    ok = ?UPSTREAM:accepted(#{}, Upstream),
    ?assertEqual([], logged()).

%% Something listens, but does not shake hands.
a_silent_handshake_is_no_broker(_) ->
    {Listen, Upstream} = broker(),
    Tls = Upstream#{tls := [{verify, verify_none}, {log_level, none}], connect_timeout := 200},
    ?assertEqual(false, ?UPSTREAM:available(Tls)),
    ?assertEqual(1, connections(Listen)).

why_it_is_not_there(_) ->
    {Listen, Upstream} = broker(),
    Silent = Upstream#{tls := [{verify, verify_none}, {log_level, none}], connect_timeout := 200},
    ?assertEqual({error, timeout}, ?UPSTREAM:check(Silent, 1000)),
    ok = gen_tcp:close(Listen),
    ok = ?UPSTREAM:lost(Upstream),
    ?assertEqual({error, econnrefused}, ?UPSTREAM:check(Upstream, 1000)),
    ?assertEqual("connection refused", ?UPSTREAM:explain(econnrefused)),
    ?assertEqual("no answer", ?UPSTREAM:explain(timeout)),
    Alert = {tls_alert, {unknown_ca, "TLS client: In state x at y.erl:1 generated CLIENT ALERT: Fatal - Unknown CA\n"}},
    ?assertEqual("TLS: Unknown CA", lists:flatten(?UPSTREAM:explain(Alert))).

%% However old the answer is, up to what they take. A client is not let in on one that is older than a
%% second, and the end of a connection makes both look again.
who_watches_causes_few_connections(_) ->
    {Listen, Upstream} = broker(),
    ?assertEqual(ok, ?UPSTREAM:check(Upstream, 60000)),
    timer:sleep(1100),
    ?assertEqual(ok, ?UPSTREAM:check(Upstream, 60000)),
    ?assertEqual(1, connections(Listen)),
    ?assertEqual({true, #{}}, ?UPSTREAM:available(Upstream)),
    ?assertEqual(1, connections(Listen)),
    ok = ?UPSTREAM:lost(Upstream),
    ?assertEqual(ok, ?UPSTREAM:check(Upstream, 60000)),
    ?assertEqual(1, connections(Listen)).

%% -------------------------------------------------------------------------------------------

broker() ->
    {ok, Listen} = gen_tcp:listen(0, [{active, false}, {ip, {127, 0, 0, 1}}, {backlog, 200}]),
    {ok, Port} = inet:port(Listen),
    {Listen, #{host => {127, 0, 0, 1}, port => Port, tls => none, connect_timeout => ?WAIT}}.

connections(Listen) ->
    case gen_tcp:accept(Listen, 0) of
        {ok, _} -> 1 + connections(Listen);
        {error, timeout} -> 0
    end.

parallel(Count, Fun) ->
    Self = self(),
    Pids = [spawn_link(fun() -> Self ! {self(), Fun()} end) || _ <- lists:seq(1, Count)],
    [receive {Pid, Result} -> Result after ?WAIT -> error(no_answer) end || Pid <- Pids].

until(Fun) -> until(Fun, erlang:monotonic_time(millisecond) + ?WAIT).

until(Fun, Deadline) ->
    case Fun() of
        true -> ok;
        false ->
            ?assert(erlang:monotonic_time(millisecond) < Deadline),
            until(Fun, Deadline)
    end.

%% All that was said so far has been handled.
logged() ->
    _ = sys:get_status(nats_gateway_upstream),
    taken().

taken() ->
    receive
        {logged, Report} -> [Report | taken()]
    after 0 -> []
    end.
