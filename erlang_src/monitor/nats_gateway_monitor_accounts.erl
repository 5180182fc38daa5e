%% `/accountz' and `/accstatz' of a nats-server, in its field names (nats-server 2.10,
%% server/monitor.go): the accounts of JWTs, and `$G', which has those that are in no other.
-module(nats_gateway_monitor_accounts).

-export([accountz/2]).
-export([accstatz/2]).

-include("nats_gateway_census.hrl").

-define(GLOBAL, <<"$G">>).

%% All of them by name, or one in detail.
-spec accountz(all | {one, Account :: binary()}, nats_gateway_monitor_facts:gateway()) ->
    {ok, map()} | {error, no_such_account}.
accountz(Which, Gateway = #{config := #{server_id := ServerId}}) ->
    Known = known(Gateway),
    Answer = #{server_id => ServerId, now => nats_gateway_monitor_facts:now()},
    case Which of
        all ->
            {ok, Answer#{accounts => lists:sort(maps:keys(Known))}};
        {one, Account} when is_map_key(Account, Known) ->
            {ok, Answer#{account_detail => detail(Account, maps:get(Account, Known))}};
        {one, _} ->
            {error, no_such_account}
    end.

%% Those of the settings, and those of clients that came under other settings.
known(#{config := Config}) ->
    Seen = maps:map(fun(_, _) -> #{} end, nats_gateway_census:accounts()),
    maps:merge(Seen#{?GLOBAL => #{}}, nats_gateway_admission:accounts(Config)).

detail(Account, Facts) ->
    Rows = of_account(Account, nats_gateway_census:open()),
    maps:merge(of_jwt(Facts), #{
        account_name => Account,
        expired => maps:get(expired, Facts, false),
        complete => true,
        jetstream_enabled => false,
        leafnode_connections => 0,
        client_connections => length(Rows),
        subscriptions => subscriptions(Rows)
    }).

of_jwt(#{jwt := Jwt, issuer := Issuer, name := Name, tags := Tags, revocations := Revocations}) ->
    Revoked = maps:map(
        fun(_, Seconds) -> nats_gateway_monitor_facts:time(Seconds * 1000) end, Revocations
    ),
    maps:merge(
        #{jwt => Jwt, issuer_key => Issuer, name_tag => Name},
        maps:from_list(
            [{tags, Tags} || Tags =/= []] ++ [{revoked_user, Revoked} || map_size(Revoked) > 0]
        )
    );
of_jwt(_) ->
    #{}.

%% Those that have a client now; all that are known, if the unused are asked for, too.
-spec accstatz(Unused :: boolean(), nats_gateway_monitor_facts:gateway()) -> map().
accstatz(Unused, Gateway = #{config := #{server_id := ServerId}}) ->
    Rows = nats_gateway_census:open(),
    Totals = nats_gateway_census:accounts(),
    #{
        server_id => ServerId,
        now => nats_gateway_monitor_facts:now(),
        account_statz => [
            statistics(Account, Name, OfAccount, maps:get(Account, Totals, #{}))
         || {Account, Facts} <- lists:sort(maps:to_list(known(Gateway))),
            Name <- [maps:get(name, Facts, <<>>)],
            OfAccount <- [of_account(Account, Rows)],
            Unused orelse OfAccount =/= []
        ]
    }.

statistics(Account, Name, Rows, Totals) ->
    Total = fun(Kind) -> maps:get(Kind, Totals, 0) end,
    #{
        acc => Account,
        name => Name,
        conns => length(Rows),
        leafnodes => 0,
        total_conns => length(Rows),
        num_subscriptions => subscriptions(Rows),
        sent => #{msgs => Total(messages_sent), bytes => Total(octets_sent)},
        received => #{msgs => Total(messages_received), bytes => Total(octets_received)},
        slow_consumers => Total(slow_consumers)
    }.

of_account(Account, Rows) -> [Row || Row = #census{account = A} <- Rows, A =:= Account].

subscriptions(Rows) ->
    lists:sum([maps:get(subscriptions, Figures, 0) || #census{figures = Figures} <- Rows]).
