%% The connections of accounts whose JWT limits them (`conn`): on this node and, as far as it has
%% heard of them, on all nodes of an EMQX cluster. nats-server counts them in the same way. Accounts
%% without a limit are not counted.
-module(nats_gateway_accounts).

-behaviour(gen_server).

-export([child_specs/0]).
-export([start_link/0]).
-export([join/2]).
-export([leave/1]).
-export([init/1, handle_call/3, handle_cast/2]).

%% The members of an account are its connections; they leave when they end.
-define(SCOPE, nats_gateway_account_members).

-spec child_specs() -> [supervisor:child_spec()].
child_specs() ->
    [
        #{id => ?SCOPE, start => {pg, start_link, [?SCOPE]}},
        #{id => ?MODULE, start => {?MODULE, start_link, []}}
    ].

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The calling process is one more connection of the account.
-spec join(Account :: binary(), Limit :: non_neg_integer() | infinity) -> ok | full.
join(_, infinity) -> ok;
join(Account, Limit) -> gen_server:call(?MODULE, {join, Account, Limit}, infinity).

%% It is none any more, if it was one.
-spec leave(Account :: binary()) -> ok.
leave(Account) ->
    _ = pg:leave(?SCOPE, Account, self()),
    ok.

init([]) -> {ok, []}.

%% One after the other, so that no two take the same last place.
handle_call({join, Account, Limit}, {Pid, _}, State) ->
    case length(pg:get_members(?SCOPE, Account)) >= Limit of
        true -> {reply, full, State};
        false -> {reply, pg:join(?SCOPE, Account, Pid), State}
    end.

handle_cast(_, State) -> {noreply, State}.
